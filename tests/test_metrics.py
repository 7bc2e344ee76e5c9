"""The figures of merit, on signals whose answer is known."""

from __future__ import annotations

import math
import sys
import unicodedata

import numpy as np
import pytest
import torch

from chatterbox_vllm.evaluation import metrics

RATE = 16_000


def voice(seconds: float, rate: int = RATE) -> np.ndarray:
    """A gliding vowel in syllables, which measures of speech take for speech."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / rate
    wave = sum(np.sin(k * phase) * np.exp(-((120 * k - 700) ** 2) / 4e5) for k in range(1, 30))
    return (0.2 * wave * np.clip(np.sin(2 * np.pi * 2.5 * t), 0, 1)).astype(np.float32)


def noisy(wave: np.ndarray, level: float) -> np.ndarray:
    return wave + level * np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32)


def test_divergence() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.5, 0.25]])
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    logits = [np.log(x).astype(np.float32) + shift for x, shift in ((p, 3), (q, -7))]
    assert metrics.divergence(*logits) == pytest.approx([expected], rel=1e-5)
    assert metrics.divergence(logits[0], logits[0]) == pytest.approx([0.0], abs=1e-12)
    # A token that the baseline never says may be anything to the candidate; not the other way round.
    never = np.array([[0.0, 0.0, -np.inf]], np.float32)
    ever = np.zeros((1, 3), np.float32)
    assert metrics.divergence(never, ever) == pytest.approx([math.log(1.5)])
    assert metrics.divergence(ever, never) == [np.inf]
    assert metrics.divergence(ever, np.full((1, 3), np.nan, np.float32)) == [np.inf]
    with pytest.raises(ValueError, match="shapes"):
        metrics.divergence(ever, np.zeros((1, 4), np.float32))


def test_top1() -> None:
    a = np.array([[0, 2, 1], [3, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]], np.float32)
    b = np.array([[1, 5, 0], [0, 1, 0], [0, np.nan, 1], [0, 0, np.inf], [0, -np.inf, 1]], np.float32)
    assert metrics.same_top1(a, b).tolist() == [True, False, False, False, True]


def test_mel_distance() -> None:
    mel = np.random.default_rng(0).standard_normal((40, 80)).astype(np.float32)
    assert metrics.mel_distance(mel, mel) == 0
    assert metrics.mel_distance(mel, mel + np.float32(0.25)) == pytest.approx(0.25, rel=1e-5)
    assert metrics.mel_distance(mel, mel * np.nan) == np.inf


def test_spectral_distortion_hears_level_and_not_polarity() -> None:
    wave = voice(1.0, 24_000)
    assert metrics.spectral_distortion(wave, wave) == 0
    assert metrics.spectral_distortion(wave, -wave) == pytest.approx(0, abs=1e-4)
    assert metrics.spectral_distortion(wave, 0.9 * wave) == pytest.approx(10, rel=1e-3)
    assert metrics.spectral_distortion(wave, wave * np.nan) == np.inf
    assert metrics.spectral_distortion(wave[:100], np.zeros(100)) == pytest.approx(100)
    assert metrics.spectral_distortion(0 * wave, wave) is None


def test_without_the_library_there_is_no_pesq(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    assert metrics.pesq(voice(2.0), voice(2.0)) is None


def test_pesq_falls_with_noise_and_takes_any_length() -> None:
    pytest.importorskip("pesq")
    wave = voice(23.0)
    scores = [metrics.pesq(wave, noisy(wave, level)) for level in (0, 0.003, 0.05)]
    assert scores[0] == pytest.approx(4.64, abs=0.01) and scores[0] > scores[1] > scores[2] > 1
    assert metrics.pesq(wave, 0 * wave) == pytest.approx(1, abs=0.3)
    assert metrics.pesq(0 * wave, wave) is None  # no speech in the reference
    assert metrics.pesq(wave[:100], wave[:100]) is None


def test_stoi_falls_with_noise() -> None:
    pytest.importorskip("pystoi")
    wave = voice(3.0)
    scores = [metrics.stoi(wave, noisy(wave, level)) for level in (0, 0.02, 0.2)]
    assert scores[0] == pytest.approx(1) and scores[0] > scores[1] > scores[2]
    for length in (0, 100, 500, 3000):
        assert metrics.stoi(wave[:length], wave[:length]) is None
    assert metrics.stoi(0 * wave, wave) is None
    assert metrics.stoi(wave, 0 * wave) == 0


def test_cosine() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([1.0, 1.0])
    assert metrics.cosine(a, a) == pytest.approx(1) and metrics.cosine(a, b) == pytest.approx(math.sqrt(0.5))
    assert metrics.cosine(a, b * float("nan")) == 0


@pytest.mark.parametrize(
    ("heard", "wrong"),
    [
        ("It’s half past nine -- DON'T wait!", 0),
        ("it's half past nine don't", 1),
        ("it's a half past nine don't wait", 1),
        ("it's calf past nine don't wait", 1),
        ("", 6),
        ("nine half wait", 4),
    ],
)
def test_word_errors(heard: str, wrong: int) -> None:
    assert metrics.word_errors("It's half past nine; don't wait.", heard) == (wrong, 6)


@pytest.mark.parametrize(
    ("said", "heard", "found"),
    [
        ("Valparaíso, twice", unicodedata.normalize("NFD", "Valparaíso twice"), (0, 2)),
        ("मैं हिन्दी बोलता हूँ", "मैं हिन्दी बोलता हूँ।", (0, 4)),
        ("मैं हिन्दी बोलता हूँ", "मैं हिन्दू बोलता हूँ", (1, 4)),
        ("نمی\u200cدانم", "نمیدانم", (0, 1)),
        ("今天天气很好，我们去公园。", "今天天气很好我们去公圆", (1, 11)),
        ("カタカナとひらがな", "カタカナと ひらがね", (1, 9)),
        ("ภาษาไทย", "ภาษาไทย", (0, 7)),
        ("วันนี้", "วันนี", (1, 3)),
        ("用 GPU 说话", "用gpu说話", (1, 4)),
        ("a ❤️ b", "a b", (0, 2)),
        ("'tis rock 'n' roll", "tis rock n roll", (0, 4)),
    ],
)
def test_words_of_other_scripts(said: str, heard: str, found: tuple[int, int]) -> None:
    assert metrics.word_errors(said, heard) == found
