"""Training of T3: its rows and logits are those of inference, its batches hold what they should, and it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from training.codes import save_tokens, save_vectors
from training.data import Corpus
from training.t3_data import Sentences, exaggeration
from training.t3_judge import speak
from training.t3_model import IGNORED, Sequences, TrainedT3, alignment
from training.text import FILE, character_features, spoken_form, train_text_tokenizer

from chatterbox_vllm.checkpoint.config import SpeechTokenizerConfig, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.llama import Llama
from chatterbox_vllm.t3.plain import PlainT3

from .made_up_corpus import write_corpus

CONFIG = T3Config(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    head_dim=16,
    intermediate_size=48,
    text_vocab_size=256,
    speech_vocab_size=6592,
    text_positions=64,
    speech_positions=600,
    speaker_embedding_size=8,
    perceiver_queries=4,
    perceiver_heads=2,
)
SPACE = 2


@pytest.fixture(scope="module")
def model() -> TrainedT3:
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(["Bad dad."], CONFIG)
    return TrainedT3(CONFIG, character_features(tokenizer, CONFIG.text_vocab_size)).eval()


def sentences(speakers: list[int], config: T3Config = CONFIG, emotions: Sequence[float] | None = None) -> Sentences:
    """Sentence i says tokens 100 i, 100 i + 1, …, and is spelt 10 + i; its embedding is i everywhere.

    Its text is the shorter the longer its speech is.
    """
    count = len(speakers)
    return Sentences(
        config,
        [100 * i + np.arange(20 + i) for i in range(count)],
        [[10 + i] * (20 - 2 * i) for i in range(count)],
        speakers,
        np.arange(count)[:, None] * np.ones((1, 8)),
        np.linspace(0.3, 0.7, count) if emotions is None else emotions,
        SPACE,
        torch.device("cpu"),
    )


def test_logits_are_those_of_inference(model: TrainedT3, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    material = sentences([0, 0, 0, 1, 1, 1])
    epoch = material.epoch(random)
    batch = material.batch(epoch, np.arange(len(epoch.sequences)), random, disturb=False)
    batch = replace(batch, unconditional=torch.arange(len(batch.text)) % 2 == 1)
    with torch.no_grad():
        logits, off = model(batch)
    assert off is None

    save_file(model.published(), tmp_path / "t3.safetensors")
    weights = Weights(tmp_path / "t3.safetensors")
    weights.check(Llama().published_shapes(CONFIG))
    builder, plain = PromptBuilder.from_weights(CONFIG, weights), PlainT3(CONFIG, weights)
    for row in range(len(batch.text)):
        conditioning = builder.conditioning(batch.speaker[row : row + 1], batch.prompt[row], float(batch.emotion[row]))
        text = batch.text[row, 1 : batch.text_counts[row] - 1].tolist()
        prompt = builder.prompt(conditioning, text)
        tokens = batch.speech[row, : batch.speech_counts[row]].tolist()
        (expected,) = plain.teacher_forced([plain.embed(builder, prompt, tokens)])
        stream = int(batch.unconditional[row])
        torch.testing.assert_close(
            logits[row, : len(tokens) + 1], expected[stream, len(prompt) - 1 :], atol=1e-4, rtol=1e-3
        )
        assert batch.targets[row, : len(tokens) + 1].tolist() == [*tokens, CONFIG.stop_speech_token]
        assert (batch.targets[row, len(tokens) + 1 :] == IGNORED).all()


def test_sequences_hold_whole_sentences_of_one_speaker() -> None:
    random = np.random.default_rng(1)
    speakers = [0, 1, 0, 1, 0, 1, 0, 1, 2]
    material = sentences(speakers)
    joined = 0
    for _ in range(10):
        epoch = material.epoch(random)
        batch = material.batch(epoch, np.arange(len(epoch.sequences)), random, disturb=False)
        said: list[int] = []
        for row in range(len(batch.text)):
            tokens = batch.speech[row, : batch.speech_counts[row]].tolist()
            starts = [t // 100 for t in tokens if t % 100 == 0]
            assert tokens == [t for s in starts for t in range(100 * s, 100 * s + 20 + s)]
            assert len({speakers[s] for s in starts}) == 1
            text = batch.text[row, : batch.text_counts[row]].tolist()
            spelt = [p for s in starts for p in [*[10 + s] * (20 - 2 * s), SPACE]][:-1]
            assert text == [CONFIG.start_text_token, *spelt, CONFIG.stop_text_token]
            prompted = {t // 100 for t in batch.prompt[row].tolist()}
            assert {speakers[s] for s in prompted} == {speakers[starts[0]]}
            assert not prompted & set(starts)
            voice = int(batch.speaker[row, 0])
            assert speakers[voice] == speakers[starts[0]] and voice not in starts
            said += starts
            joined += len(starts) > 1
        # Speaker 2 has one sentence, and so no prompt for it.
        assert sorted(said) == list(range(8))
    assert joined > 5


def test_joined_sentences_are_alike_lively() -> None:
    """Those of a step are together but for the step's last ones; the exaggeration of all is their mean."""
    random = np.random.default_rng(2)
    movement = [0.5, 1.0, 2.0] * 8
    emotions = [exaggeration(value) for value in movement]
    assert emotions[:3] == [0.0, 0.5, 1.5]
    material = sentences([0] * len(movement), emotions=emotions)
    alike = joined = 0
    for _ in range(10):
        epoch = material.epoch(random)
        batch = material.batch(epoch, np.arange(len(epoch.sequences)), random)
        for row in range(len(batch.text)):
            count = int(batch.speech_counts[row])
            said = {t // 100 for t in batch.targets[row, :count].tolist()}
            assert float(batch.emotion[row]) == pytest.approx(np.mean([emotions[s] for s in said]))
            joined += len(said) > 1
            alike += len(said) > 1 and len({emotions[s] for s in said}) == 1
    assert joined > 30 and alike > 0.6 * joined


def test_chosen_sentences_stand_alone() -> None:
    random = np.random.default_rng(1)
    material = sentences([0, 0, 0, 1, 1])
    epoch = material.epoch(random, chosen={1, 4})
    assert sorted(epoch.utterances[epoch.sequences[:, 6]].tolist()) == [1, 4]
    assert epoch.sequences[:, 7].tolist() == [1, 1]


def test_disturbed_batches_lose_text_now_and_then() -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(1)
    material = sentences([0, 0, 0, 0, 1, 1, 1, 1])
    epoch = material.epoch(random)
    rows = np.arange(len(epoch.sequences))
    batches = [material.batch(epoch, rows, random) for _ in range(60)]
    dropped = torch.cat([batch.unconditional for batch in batches]).float().mean()
    assert 0.05 < dropped < 0.2
    said = [(b.speech, b.targets[:, :-1]) for b in batches]
    spoilt = torch.cat([(heard != true)[(true >= 0) & (true < CONFIG.start_speech_token)] for heard, true in said])
    assert 0.03 < spoilt.float().mean() < 0.1


def test_text_is_all_that_the_streams_differ_in(model: TrainedT3) -> None:
    random = np.random.default_rng(0)
    material = sentences([0, 0, 0])
    epoch = material.epoch(random)
    batch = material.batch(epoch, np.arange(1), random, disturb=False)
    with torch.no_grad():
        rows, begins = model.rows(batch)
        blind, _ = model.rows(replace(batch, unconditional=torch.tensor([True])))
    differing = (rows != blind).any(2)[0].nonzero()[:, 0].tolist()
    assert differing == list(range(CONFIG.conditioning_length, int(begins) - 1))


def test_half_precision_takes_the_same_way(model: TrainedT3) -> None:
    random = np.random.default_rng(0)
    material = sentences([0, 0, 0])
    epoch = material.epoch(random)
    batch = material.batch(epoch, np.arange(len(epoch.sequences)), random, disturb=False)
    with torch.no_grad():
        exact, _ = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half, off = model(batch, guided=True)
    assert off is not None and half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_alignment_rewards_looking_where_speech_is() -> None:
    """A head that looks along the diagonal, one that looks at the first piece of text, and one at the conditioning."""
    conditioning, pieces, spoken = 2, 10, 10
    rows = conditioning + pieces + 2 + spoken
    batch = Sequences(
        *(torch.zeros(1) for _ in range(3)),
        text=torch.zeros(1, pieces),
        text_counts=torch.tensor([pieces]),
        speech=torch.zeros(1, spoken),
        speech_counts=torch.tensor([spoken]),
        targets=torch.zeros(1, spoken + 1, dtype=torch.int64),
        unconditional=torch.tensor([False]),
        rows=rows,
    )
    places = (conditioning + pieces + 1 + torch.arange(spoken + 1))[None]
    key = torch.eye(rows)[None]

    def looking_at(targets: torch.Tensor) -> float:
        query = torch.zeros(1, rows, rows)
        query[0, places[0], targets] = 200.0
        return float(alignment(query, key, places, conditioning, batch))

    diagonal = looking_at(conditioning + torch.arange(spoken + 1).clamp(max=pieces - 1))
    first = looking_at(torch.full((spoken + 1,), conditioning))
    nowhere = looking_at(torch.zeros(spoken + 1, dtype=torch.int64))
    assert diagonal < 0.1 < 0.6 < first < nowhere
    assert nowhere == pytest.approx(1)


def test_learns_to_say_sentences_by_heart() -> None:
    """After a few hundred steps it says the right tokens by itself, stops, and says others for another text."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    tokenizer = train_text_tokenizer([], CONFIG)
    trained = TrainedT3(CONFIG, character_features(tokenizer, CONFIG.text_vocab_size), dropout=0.0)
    material = sentences([0, 0, 0, 0])
    optimizer = torch.optim.AdamW(trained.parameters(), 5e-3)
    for step in range(250):
        epoch = material.epoch(random, chosen={0, 1, 2, 3})
        batch = material.batch(epoch, np.arange(4), random, disturb=step % 2 == 0)
        logits, off = trained(batch, guided=True)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        (loss + 0.1 * off).backward()
        optimizer.step()
    said = speak(trained, material.batch(epoch, np.arange(4), random, disturb=False))
    for tokens, number in zip(said, epoch.utterances.tolist(), strict=True):
        expected = list(range(100 * number, 100 * number + 20 + number))
        assert abs(len(tokens) - len(expected)) <= 2
        assert np.mean([t in expected for t in tokens]) > 0.8


def test_script_runs_from_a_corpus_to_published_tensors(tmp_path: Path) -> None:
    from training import t3
    from training.phonemes import PhonemeIds
    from training.tokenizer_model import Trained
    from training.weights import keep_weights

    corpus = Corpus(write_corpus(tmp_path / "corpus"))
    texts = [spoken_form(corpus.utterances[i].text) for i in corpus.training]
    (tmp_path / "text").mkdir()
    train_text_tokenizer(texts, CONFIG).save(str(tmp_path / "text" / FILE))
    small = SpeechTokenizerConfig(hidden_size=16, num_heads=1, num_layers=1)
    heads = Trained(small, len(PhonemeIds(corpus.phoneme_symbols)), len(corpus.speakers))
    keep_weights(tmp_path / "tokenizer", heads.state_dict(), vars(small))
    random = np.random.default_rng(0)
    count = len(corpus.utterances)
    save_tokens(tmp_path / "codes", [random.integers(0, 6561, 20 + i) for i in range(count)])
    save_vectors(tmp_path / "codes", random.random((count, 4)), random.random((count, 8)))
    options = ["--corpus", str(corpus.directory), "--out", str(tmp_path / "t3"), "--device", "cpu", "--seconds", "2"]
    trained = t3.train(t3.parser().parse_args([*options, "--batch-rows", "400", "--spoken", "2"]), CONFIG)
    t3.train(t3.parser().parse_args([*options, "--batch-rows", "400", "--spoken", "2", "--resume"]), CONFIG)
    log = (tmp_path / "t3" / "log.jsonl").read_text()
    assert all(name in log for name in ("held_out_perplexity", "held_out_phoneme_errors", "held_out_length_ratio"))
    published = t3.published_t3(tmp_path / "t3")
    assert {k: tuple(v.shape) for k, v in published.items()} == Llama().published_shapes(CONFIG)
    assert published.keys() == trained.published().keys()
