"""What is speech and what is not, told without understanding it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from chatterbox_vllm.evaluation.compare_speech import fault
from chatterbox_vllm.evaluation.own_speech import measure_speech

RATE = 24_000
SECONDS = 4
T = np.arange(SECONDS * RATE) / RATE
RNG = np.random.default_rng(0)


def speech_like(seconds: float = SECONDS, pitch: float = 120.0, tempo: float = 2.5) -> np.ndarray:
    """Vowels of moving formants in syllables, with fricatives of noise between them."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    formant = 700 + 350 * np.sin(2 * np.pi * 1.3 * t) + 150 * np.sin(2 * np.pi * 0.37 * t + 1)
    vowel = sum(np.sin(k * phase) * np.exp(-(((k * pitch - formant) / 300) ** 2)) for k in range(1, 40))
    syllable = np.clip(np.sin(2 * np.pi * tempo * t + np.sin(2 * np.pi * 0.31 * t)), 0, 1) ** 2
    hiss = np.diff(np.random.default_rng(1).standard_normal(len(t) + 1)) * np.clip(-np.sin(2 * np.pi * tempo * t), 0, 1)
    return (0.2 * vowel * syllable + 0.002 * hiss).astype(np.float32)


def noise(level: float) -> np.ndarray:
    return (level * RNG.standard_normal(len(T))).astype(np.float32)


def brown() -> np.ndarray:
    wave = np.cumsum(RNG.standard_normal(len(T)))
    wave -= np.convolve(wave, np.ones(2000) / 2000, "same")
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


SPEECH = speech_like()
LOOP = np.tile(SPEECH[RATE : RATE + RATE * 7 // 10], 6)[: len(SPEECH)]


def test_figures_of_sounds_whose_answer_is_known() -> None:
    white, silence = measure_speech(noise(0.1)), measure_speech(np.zeros(RATE, np.float32))
    assert white.level == pytest.approx(-20, abs=0.2) and white.flatness == pytest.approx(0.56, abs=0.02)
    assert white.voiced < 0.02 and white.movement < 0.3 and white.repetition < 0.2 and white.seconds == SECONDS
    assert silence.level == -math.inf and silence.movement == silence.voiced == 0
    tone = measure_speech(0.5 * np.sin(2 * np.pi * 150 * T).astype(np.float32))
    assert tone.level == pytest.approx(-9, abs=0.2) and tone.flatness < 1e-3 and tone.voiced == 1
    assert measure_speech(np.sign(np.sin(2 * np.pi * 150.3 * T)).astype(np.float32)).clipped > 0.99
    assert measure_speech(LOOP).repetition > 0.95
    assert measure_speech(np.zeros(0, np.float32)).level == measure_speech(np.zeros(5, np.float32)).level == -math.inf


def test_level_is_all_that_loudness_changes() -> None:
    loud, quiet = measure_speech(SPEECH), measure_speech(SPEECH / 4)
    assert loud.level - quiet.level == pytest.approx(12.04, abs=0.01)
    np.testing.assert_allclose(loud.spectrum - quiet.spectrum, math.log(4), atol=0.01)
    for name in ("flatness", "voiced", "movement", "repetition"):
        assert getattr(loud, name) == pytest.approx(getattr(quiet, name), abs=0.01)


@pytest.mark.parametrize(
    "change",
    [
        lambda wave: wave,
        lambda wave: wave / 2,
        lambda wave: wave + noise(3e-4),  # more than half precision makes
        lambda wave: speech_like(SECONDS * 1.1, 123.0, 2.3),  # other draws of the same voice
    ],
    ids=["itself", "half as loud", "half precision", "other words"],
)
def test_what_may_be_speech(change: Callable[[np.ndarray], np.ndarray]) -> None:
    assert fault(measure_speech(SPEECH), measure_speech(change(SPEECH))) is None


@pytest.mark.parametrize(
    ("wave", "named"),
    [
        (np.zeros_like(SPEECH), "silence"),
        (SPEECH / 100, "silence"),
        (noise(0.1), "noise"),
        (SPEECH + noise(0.05), "noise"),
        (brown(), "a steady sound"),
        (0.3 * np.sin(2 * np.pi * 100 * T) + 0.1 * np.sin(2 * np.pi * 200 * T), "a steady sound"),
        (LOOP, "a loop"),
        (np.clip(20 * SPEECH, -0.99, 0.99), "clipped"),
        # Whispered: the same spectra, without a pitch.
        (np.fft.irfft(np.abs(np.fft.rfft(SPEECH)) * np.exp(2j * np.pi * RNG.random(len(SPEECH) // 2 + 1))), ""),
    ],
    ids=["silence", "quiet", "white", "speech in noise", "brown", "hum", "loop", "clipped", "scrambled"],
)
def test_what_is_no_speech(wave: np.ndarray, named: str) -> None:
    told = fault(measure_speech(SPEECH), measure_speech(wave.astype(np.float32)))
    assert told is not None and told.startswith(named), told
