"""The teacher in batches: each line as it is alone; its audio levelled and cut; runs that stop go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from training.corpus import kokoro_weights
from training.corpus.kokoro import (
    HIGHEST_HZ,
    LOWEST_HZ,
    AdaIn,
    AdaInBlock,
    Kokoro,
    SnakeBlock,
    expand,
    frame_mask,
    moved,
)
from training.corpus.kokoro_weights import our_name
from training.corpus.make import Options, make
from training.corpus.plan import Line, Plan
from training.corpus.store import CorpusWriter
from training.corpus.teacher import EDGE, Teacher, finish, play_faster
from training.data import RATE, Corpus, CorpusError, Speaker

SPEAKERS = [
    Speaker("a", {"timbre": {"af_one": 1.0}, "prosody": None, "resample": 1.0}, False),
    Speaker("b", {"timbre": {"af_one": 0.5, "am_two": 0.5}, "prosody": {"am_two": 1.0}, "resample": 1.25}, False),
]
LINES = [
    Line(3, 0, 1.0, False, "One.", "wˈʌn."),
    Line(4, 1, 1.0, False, "Two.", "tˈu.."),
    Line(5, 0, 0.5, True, "Three.", "θɹˈi."),
    Line(6, 0, 1.0, False, "Fourteen.", "fˌɔɹtˈin.", 2.0),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `kokoro_weights` writes it, of random 8-bit weights that speak a frame or two a phoneme."""
    folder = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Kokoro().state_dict().items()}
    for name, shape in shapes.items():
        if len(shape) > 1 and "alpha" not in name:
            tensors[name] = rng.integers(-127, 128, shape, dtype=np.int8)
            tensors[f"{name}|scale"] = np.full((1,) * len(shape), 0.01 / math.sqrt(np.prod(shape[1:])), np.float32)
            tensors[f"{name}|zero"] = np.zeros((1,) * len(shape), np.float32)
        else:
            tensors[name] = np.full(shape, 1.0 if "alpha" in name or "norm" in name else 0.0, np.float32)
    tensors["prosody.duration.bias"] -= 3.5
    tensors["prosody.F0_proj.bias"] += 150
    half = len(tensors) // 2
    save_file(dict(list(tensors.items())[:half]), folder / kokoro_weights.FILES[0])
    save_file(dict(list(tensors.items())[half:]), folder / kokoro_weights.FILES[1])
    tables = {name: rng.normal(size=(510, 256)).astype(np.float16) for name in ("af_one", "am_two")}
    save_file(tables, folder / kokoro_weights.VOICES)
    symbols = {symbol: i for i, symbol in enumerate(sorted({s for line in LINES for s in line.phonemes}), 1)}
    (folder / kokoro_weights.VOCAB).write_text(json.dumps(symbols))
    return folder


def test_padding_changes_nothing_in_a_block() -> None:
    torch.manual_seed(0)
    style, lengths = torch.randn(2, 128), torch.tensor([9, 5])
    x = torch.randn(2, 6, 9) + 3
    x[1, :, 5:] = 0
    mask = frame_mask(lengths, 9)
    norm, snake, block = AdaIn(6), SnakeBlock(6, 3), AdaInBlock(6, 4, upsample=True)
    for batched, alone, frames in (
        (norm(x, style, mask, lengths), norm(x[1:, :, :5], style[1:], mask[1:, :, :5], lengths[1:]), 5),
        (snake(x, style, mask, lengths), snake(x[1:, :, :5], style[1:], mask[1:, :, :5], lengths[1:]), 5),
        (block(x, style, lengths), block(x[1:, :, :5], style[1:], lengths[1:]), 10),
    ):
        torch.testing.assert_close(batched[1:, :, :frames], alone, rtol=1e-4, atol=1e-5)
        assert not batched[1, :, frames:].any()


def test_instance_norm_is_what_it_says() -> None:
    torch.manual_seed(0)
    norm, x = AdaIn(6), torch.randn(2, 6, 40) * 2 + 1
    gamma, beta = norm.fc(style := torch.randn(2, 128))[..., None].chunk(2, 1)
    wanted = (1 + gamma) * torch.nn.functional.instance_norm(x) + beta
    given = norm(x, style, torch.ones(2, 1, 40), torch.tensor([40, 40]))
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_expand_repeats_each_phoneme() -> None:
    states = torch.arange(1.0, 7.0).reshape(2, 3, 1)
    spread = expand(states, torch.tensor([[2, 1, 3], [1, 1, 0]]), 6)
    assert spread[..., 0].tolist() == [[1, 1, 2, 3, 3, 3], [4, 5, 0, 0, 0, 0]]


def test_pitch_moves_about_its_own_mean() -> None:
    """Octaves from the mean are scaled; pauses and the way to them, padding, and utterances at 1 stay as they are."""
    f0 = torch.tensor([[100.0, 100, 8, 40, 400, 400], [90, 110, 300, 5, 0, 0], [55, 55, 470, 470, 0, 0]])[:, None]
    now = moved(f0, torch.tensor([0.5, 1.0, 3.0]))
    # The mean is that of 100, 100 and 400 Hz: the frame that the pitch jumps to hardly counts.
    low, high = 100 * 2 ** (1 / 3), 200 * 2 ** (1 / 3)
    assert now[0, 0].tolist() == pytest.approx([low, low, 8, 40, high, high], rel=1e-3)
    assert torch.equal(now[1], f0[1])
    assert now[2, 0].tolist() == pytest.approx([LOWEST_HZ, LOWEST_HZ, HIGHEST_HZ, HIGHEST_HZ, 0, 0])


def test_a_line_is_spoken_with_its_movement(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the vocoder is the pitch of the same line at 1, scaled."""
    teacher = Teacher(weights, SPEAKERS)
    heard: list[torch.Tensor] = []
    forward = teacher.network.generator.forward

    def listen(x: torch.Tensor, f0: torch.Tensor, *rest: object) -> torch.Tensor:
        heard.append(f0)
        return forward(x, f0, *rest)

    monkeypatch.setattr(teacher.network.generator, "forward", listen)
    for movement in (1.0, 3.0):
        list(teacher.speak([replace(LINES[3], movement=movement)]))
    assert heard[0].std() > 0
    torch.testing.assert_close(heard[1], moved(heard[0], torch.tensor([3.0])))
    assert not torch.allclose(heard[0], heard[1])


@torch.inference_mode()
def test_a_batch_says_what_each_line_says_alone(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = kokoro_weights.load(weights)
    torch.manual_seed(0)
    tokens, style, speed = torch.randint(1, 9, (2, 7)), torch.randn(2, 256), torch.tensor([1.0, 0.4])
    noise, movement = torch.randn(2, 9, 600 * 60), torch.tensor([1.0, 1.5])
    sources = []
    own_source = network.generator.excitation

    def speak(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        durations, states, said = network.text(tokens[rows], style[rows], speed[rows])
        lengths = durations.sum(1)
        frames = int(lengths.max())
        spread = expand(states, durations, frames), expand(said, durations, frames)
        return network.speak(*spread, style[rows], lengths, movement[rows], noise[rows, :, : 600 * frames]), lengths

    def excitation(f0: torch.Tensor, lengths: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The batch's source for a line alone: a phase next to pi may turn to -pi by a rounding error."""
        sources.append(own_source(f0, lengths, noise))
        row = max(0, len(sources) - 2)
        return sources[0][row : row + len(f0), :, : sources[-1].shape[-1]]

    monkeypatch.setattr(network.generator, "excitation", excitation)
    both, lengths = speak(slice(0, 2))
    assert lengths[0] != lengths[1]
    for i in range(2):
        alone, (frames,) = speak(slice(i, i + 1))
        assert frames == lengths[i] and alone.abs().max() > 1e-3
        # The windows of the last 10 samples overlap with what follows in a batch, and with nothing alone.
        inside = slice(0, 600 * frames - 10)
        torch.testing.assert_close(both[i, inside], alone[0, inside], rtol=1e-3, atol=1e-3 * float(alone.abs().max()))
        spectra = [
            torch.polar(*source[:, :, : 120 * frames + 1].chunk(2, 1))
            for source in (sources[0][i : i + 1], sources[-1])
        ]
        torch.testing.assert_close(*spectra, rtol=1e-3, atol=1e-3)


def test_the_teacher_speaks_each_line_once(weights: Path) -> None:
    teacher = Teacher(weights, SPEAKERS, batch_seconds=1)
    spoken = {line.id: audio for batch in teacher.speak(LINES) for line, audio in batch}
    assert set(spoken) == {3, 4, 5, 6}
    for audio in spoken.values():
        assert audio.dtype == np.int16 and 0 < np.abs(audio).max() <= 0.95 * 32767 + 1
    # Half the speed takes longer for as many phonemes.
    assert len(spoken[5]) > len(spoken[3])
    assert list(teacher.speak(LINES, stop=lambda: True)) == []


def test_the_teacher_refuses_what_it_cannot_follow(weights: Path) -> None:
    for recipe, message in (
        ({"timbre": {"af_no": 1.0}}, "sum to 1 and name voices"),
        ({"timbre": {"af_one": 0.6}}, "sum to 1"),
        ({"timbre": {"af_one": 1.0}, "resample": 1.08}, "resampled by 1.08"),
    ):
        with pytest.raises(CorpusError, match=message):
            Teacher(weights, [Speaker("x", recipe, False)])
    teacher = Teacher(weights, SPEAKERS)
    with pytest.raises(CorpusError, match="line 1 holds"):
        teacher.tokens(Line(1, 0, 1.0, False, "?", "wˈʌn@"))
    with pytest.raises(CorpusError, match="has 510 phonemes"):
        teacher.tokens(Line(1, 0, 1.0, False, "?", "w" * 510))
    with pytest.raises(CorpusError, match=r"no kokoro\.1\.safetensors"):
        kokoro_weights.load(weights.parent)


def test_playing_faster_moves_the_pitch() -> None:
    time = torch.arange(RATE) / RATE
    played = play_faster(torch.sin(2 * math.pi * 440 * time)[None], 22)
    assert abs(played.shape[1] - RATE / 1.1) < 1500
    peak = int(torch.fft.rfft(played[0, : RATE // 2]).abs().argmax()) * 2
    assert abs(peak - 484) <= 2
    assert abs(float(played[0, 2000:18000].abs().max()) - 1) < 0.02


def test_audio_is_levelled_and_cut() -> None:
    torch.manual_seed(0)
    wave = torch.zeros(2, RATE)
    wave[0, 6000:12000] = 0.02 * torch.randn(6000)
    wave[1, 240:20000] = torch.randn(19760)
    wave[1, 20000:] = 9.0  # beyond the row's own samples
    pcm, begin, end = finish(wave, torch.tensor([RATE, 20000]))
    assert begin.tolist() == [6000 - EDGE, 0]
    assert end.tolist() == [12000 + EDGE, 20000]
    for row, lo, hi in ((0, 6000, 12000), (1, 240, 20000)):
        speech = pcm[row, lo:hi].double() / 32767
        level = 20 * math.log10(float(speech.square().mean().sqrt()))
        assert abs(level + 23) < 0.1
    spike = torch.zeros(1, RATE)
    spike[0, ::240] = 1.0
    assert int(finish(spike, torch.tensor([RATE]))[0].max()) == round(0.95 * 32767)


def test_a_plan_is_spoken_and_gone_on_with(weights: Path, tmp_path: Path) -> None:
    Plan(SPEAKERS, LINES).write(tmp_path / "plan")
    begun = np.full(99, 7, np.int16)
    with CorpusWriter(tmp_path / "corpus", SPEAKERS) as writer:
        writer.add(id=4, speaker=1, text="Two.", phonemes="tˈu..", held_out=False, audio=begun)
    make(tmp_path / "plan", tmp_path / "corpus", Options(weights, "cpu", 1, 600, batch_seconds=1, round_lines=2))
    corpus = Corpus(tmp_path / "corpus")
    assert sorted(utterance.id for utterance in corpus.utterances) == [3, 4, 5, 6]
    np.testing.assert_array_equal(corpus.audio(0), begun)
    for i, utterance in enumerate(corpus.utterances):
        line = next(line for line in LINES if line.id == utterance.id)
        assert (utterance.text, utterance.phonemes) == (line.text, line.phonemes)
        assert (utterance.speaker, utterance.held_out) == (line.speaker, line.held_out)
        assert utterance.movement == line.movement
        assert corpus.audio(i).any()


def test_names_of_the_published_graph_become_ours() -> None:
    with torch.device("meta"):
        names = set(Kokoro().state_dict())
    for theirs, ours in {
        "/encoder/F0.1/norm1/fc/Gemm_MatMul_quant": "prosody.F0.1.norm1.fc",
        "encoder.predictor.F0.1.conv1.bias": "prosody.F0.1.conv1.bias",
        "/encoder/predictor/text_encoder/lstms.4/LSTM_quant": "prosody.lstms.2",
        "encoder.predictor.text_encoder.lstms.3.fc.bias": "prosody.fcs.1.bias",
        "/encoder/text_encoder/cnn.2/cnn.2.0/Conv_quant": "text_encoder.convs.2",
        "encoder.text_encoder.cnn.0.1.gamma": "text_encoder.norms.0.weight",
        "/encoder/bert/encoder/albert_layer_groups.0/albert_layers.0/attention/query/MatMul_quant": "bert.query",
        "/decoder/decoder/decode.3/pool/ConvTranspose": "decoder.decode.3.pool",
        "decoder.decoder.generator.noise_res.0.alpha1.2": "generator.noise_res.0.alpha1.2",
        "decoder.decoder.asr_res.0.bias": "decoder.asr_res.bias",
    }.items():
        assert our_name(theirs) == ours
        assert any(name.startswith(ours) for name in names)
