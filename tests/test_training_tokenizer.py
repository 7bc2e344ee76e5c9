"""Training of the speech tokenizer: it computes what enrolment computes, and it learns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training import tokenizer as training
from training.augment import disturbed
from training.data import Corpus
from training.features import to_16k, waves_24k
from training.phonemes import PhonemeIds, edit_distance, greedy
from training.tokenizer_data import Material, tokens_of
from training.tokenizer_losses import levels_penalty, losses
from training.tokenizer_model import Trained, code_ids, codes_of, load_trained, within
from training.weights import load_weights

from chatterbox_vllm.audio.features import HOP_16K, RATE_16K
from chatterbox_vllm.checkpoint.config import SpeechTokenizerConfig

from .made_up_corpus import write_corpus

CONFIG = SpeechTokenizerConfig(hidden_size=32, num_heads=2, num_layers=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(write_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def material(corpus: Corpus) -> Material:
    return Material(corpus, CONFIG, torch.device("cpu"))


def fresh(material: Material) -> Trained:
    torch.manual_seed(0)
    model = Trained(CONFIG, len(material.ids), 3)
    batch = material.batch(np.arange(6))
    model.spread_levels(batch.heard, batch.frames)
    return model


def test_codes_of_a_batch_are_the_tokens_of_enrolment(corpus: Corpus, material: Material) -> None:
    model = fresh(material)
    indices = np.array([0, 3, 7])
    batch = material.batch(indices)
    _, codes, counts = model.quantized(batch.heard, batch.frames)
    ids = code_ids(codes)
    assert torch.equal(codes_of(ids), codes.detach().round())
    waves = list(waves_24k(corpus, torch.device("cpu")))
    for row, count, index in zip(ids, counts, indices, strict=True):
        tokens = model.tokenizer.tokens(to_16k(waves[index]))
        assert count == len(tokens)
        # Features are kept in half precision, which may move a value that lies between two levels.
        assert (row[:count] == tokens).float().mean() > 0.95


def test_tokens_of_the_corpus_are_those_of_enrolment(material: Material) -> None:
    model = fresh(material)
    found = training.corpus_tokens(model.tokenizer, material.heard)
    for index, row in enumerate(found):
        mel = material.heard.row(index).float().T
        assert np.array_equal(row, model.tokenizer.tokenize_mels([mel])[0].numpy())


def test_all_levels_are_in_use_from_the_start(material: Material) -> None:
    model = fresh(material)
    batch = material.batch(np.arange(6))
    raw, codes, counts = model.quantized(batch.heard, batch.frames)
    inside = within(counts, codes.shape[1])
    shares = torch.stack([(codes[inside].round() == level).float().mean() for level in (-1, 0, 1)])
    assert shares.min() > 0.2
    assert levels_penalty(raw[inside]) < 0.2
    assert levels_penalty(3 * raw[inside]) > 1


def test_frames_of_sound_fit_the_tokens(material: Material) -> None:
    batch = material.batch(np.arange(6))
    assert batch.spoken.shape[1] == 2 * int(batch.counts.max())
    assert torch.equal(material.spoken.lengths, 2 * tokens_of(material.heard.lengths))
    # The speakers' pitches are 100, 160 and 220 Hz; what is left of them is small.
    octaves = material.octaves.values
    assert octaves.isfinite().float().mean() > 0.3
    assert octaves.nanmean().abs() < 0.05 and octaves[octaves.isfinite()].abs().median() < 0.1


def test_gradient_passes_the_rounding(material: Material) -> None:
    model = fresh(material)
    batch = material.batch(np.arange(4))
    parts = losses(model, batch, batch.heard)
    (parts["ctc"] + parts["mel"]).backward()
    assert model.tokenizer.encoder.conv1.weight.grad.abs().max() > 0


def test_half_precision_takes_the_same_way(material: Material) -> None:
    model = fresh(material)
    batch = material.batch(np.arange(6))
    with torch.no_grad():
        exact = losses(model, batch, batch.heard)
        with torch.autocast("cpu", torch.bfloat16):
            half = losses(model, batch, batch.heard)
    for name, value in exact.items():
        assert float(half[name]) == pytest.approx(float(value), rel=0.1, abs=0.05)


def test_disturbed_mels_stay_mels(material: Material) -> None:
    torch.manual_seed(0)
    heard = material.batch(np.arange(6)).heard
    changed = disturbed(heard)
    assert changed.shape == heard.shape and changed.isfinite().all()
    moved = (changed - heard).abs().mean((1, 2))
    assert moved.max() > 0.02
    assert (changed.amax((1, 2)) - changed.amin((1, 2)) <= 2.0001).all()


def test_tokens_are_compared_with_those_of_the_clean_clip(material: Material) -> None:
    torch.manual_seed(0)
    model = fresh(material)
    batch = material.batch(np.arange(6))
    clean = losses(model, batch, batch.heard)
    worse = losses(model, batch, disturbed(batch.heard))
    assert clean["same"] == 0 and clean["stable"] == 1
    assert worse["same"] > 0 and worse["stable"] < 1


def test_phonemes_without_marks_and_their_errors() -> None:
    ids = PhonemeIds(" .ˈːabæ")
    assert len(ids) == 4
    assert ids.encode("ˈab. æː") == [1, 2, 3]
    logits = torch.nn.functional.one_hot(torch.tensor([[1, 1, 0, 1, 2, 2, 3, 3]]), 4).float()
    assert greedy(logits, torch.tensor([6])) == [[1, 1, 2]]
    assert edit_distance([1, 2, 3], [1, 3]) == 1
    assert edit_distance([], [1, 3]) == 2
    assert edit_distance([1, 2, 3, 4], [2, 3, 5, 4]) == 2


def test_learns_phonemes_and_sound(material: Material) -> None:
    model = fresh(material)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    batch = material.batch(np.arange(6))
    history = []
    for _ in range(30):
        parts = losses(model, batch, batch.heard)
        optimizer.zero_grad()
        sum(parts[name] for name in ("ctc", "mel", "pitch", "levels")).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in parts.items()})
    assert history[-1]["ctc"] < 0.8 * history[0]["ctc"]
    assert history[-1]["mel"] < 0.8 * history[0]["mel"]


def test_script_resumes_and_leaves_tokens(corpus: Corpus, tmp_path: Path) -> None:
    options = ["--corpus", str(corpus.directory), "--out", str(tmp_path / "tokenizer"), "--device", "cpu"]
    steps = []
    for more in ([], ["--resume"]):
        training.train(
            training.parser().parse_args([*options, "--seconds", "1", "--batch-seconds", "8", *more]), CONFIG
        )
        log = [json.loads(line) for line in (tmp_path / "tokenizer" / "log.jsonl").read_text().splitlines()]
        steps.append(log[-1]["step"])
    assert steps[1] > steps[0]
    assert log[-1]["held_out_perplexity"] > 1
    counts = np.load(tmp_path / "codes" / "counts.npy")
    frames = [u.samples * RATE_16K // 24_000 // HOP_16K for u in corpus.utterances]
    assert counts.tolist() == [-(-f // 4) for f in frames]
    kept = load_trained(tmp_path / "tokenizer")
    material = Material(corpus, CONFIG, torch.device("cpu"))
    tokens = np.concatenate(training.corpus_tokens(kept.tokenizer, material.heard))
    assert np.array_equal(tokens, np.load(tmp_path / "codes" / "tokens.npy"))


def test_heads_may_learn_first(corpus: Corpus, tmp_path: Path) -> None:
    options = ["--corpus", str(corpus.directory), "--out", str(tmp_path / "tokenizer"), "--device", "cpu"]
    options += ["--seconds", "1", "--batch-seconds", "8"]
    training.train(training.parser().parse_args(options), CONFIG)
    before = load_weights(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "checkpoint").rename(tmp_path / "set aside")
    training.train(
        training.parser().parse_args([*options, "--resume", "--horizon", "60", "--heads-first", "0.5"]), CONFIG
    )
    after = load_weights(tmp_path / "tokenizer")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and not {name for name in moved if not name.startswith("heads.")}
