"""Which clips can serve as a reference, what is said of those that cannot, and what of a clip is heard."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.errors import AudioError
from chatterbox_vllm.voices import MAX_REFERENCE_SECONDS, check_reference
from chatterbox_vllm.voices.sound import find_sound, steady_pitch

from .made_up_clips import babble

RATE = 24_000
CLIPS = Path(__file__).parent / "parity" / "goldens" / "clips"


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def noise(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def tone(hertz: float, seconds: float = 5.0, harmonics: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.2 * sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, harmonics + 1))).astype(np.float32)


def coloured(exponent: float) -> np.ndarray:
    """Noise whose power falls with that power of the frequency."""
    spectrum = np.fft.rfft(noise(6))
    spectrum *= np.maximum(1, np.arange(len(spectrum))) ** (-exponent / 2)
    wave = np.fft.irfft(spectrum)
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


def click(seconds: float = 6.0, every: float | None = None) -> np.ndarray:
    wave = silence(seconds)
    wave[round((every or seconds / 2) * RATE) :: round((every or seconds) * RATE)] = 0.9
    return wave


# --- refused


@pytest.mark.parametrize(
    ("wave", "words"),
    [
        (silence(5), r"is silent \(digital silence"),
        (silence(5) + np.float32(0.2), r"is silent \(no sound but an offset from zero of 0\.2"),
        (silence(5) - np.float32(0.9), r"no sound but an offset from zero of -0\.9"),
        (babble(3) * 1e-3, r"is silent \(peak -6\d dBFS; a peak of at least -60 dBFS"),
        (click(), r"is silent but for 0\.00 s of sound, at least 0\.5 s"),
        (click(every=0.5), r"is silent but for 0\.00 s of sound"),
        (click() + silence(6) + np.float32(0.3), r"is silent but for 0\.00 s of sound"),
        (np.concatenate([silence(2), babble(0.3), silence(2)]), r"is silent but for 0\.\d\d s of sound"),
        (noise(5), "never changes, such as noise"),
        (noise(5, level=2e-3) + click(5), "never changes"),
        (noise(5) * (1 + 0.9 * tone(0.4, harmonics=1) / 0.2), "never changes"),
        (coloured(1), "never changes"),
        (coloured(2), "never changes"),
        (tone(50), r"never changes.* a hum or a tone \(strongest at 50 Hz\)"),
        (tone(60, harmonics=15), r"strongest at 60 Hz"),
        (tone(1000), r"strongest at 1000 Hz"),
        (tone(50) + noise(5, level=0.005), r"strongest at 50 Hz"),
        (tone(440) * (tone(1) > 0), r"strongest at 440 Hz"),
        (tone(350) + tone(440), "never changes"),
        (np.sign(tone(100)) * np.float32(0.3), r"strongest at 100 Hz"),
        (np.append(babble(1), np.float32("nan")), "NaN or infinite"),
        (np.append(babble(1).astype(np.float64), 1e300), "NaN or infinite"),
        (babble(1) * np.float32(1e12), r"samples of \d\.\d+e\+11, floats must be in -1\.\.1"),
    ],
)
def test_what_is_no_speech_is_refused_by_what_it_is(wave: np.ndarray, words: str) -> None:
    with pytest.raises(AudioError, match=f"^reference audio: .*{words}"):
        check_reference(np.asarray(wave, np.float32) if wave.max() < 1e30 else wave, RATE)


@pytest.mark.parametrize(
    ("wave", "rate", "words"),
    [
        (np.zeros(0, np.float32), RATE, "empty"),
        (babble(0.4), RATE, r"0\.40 s, at least 0\.5 s"),
        (np.zeros(int(MAX_REFERENCE_SECONDS) * 4000 + 4000, np.float32), 4000, "601 s, at most 600 s"),
        (babble(1)[None], RATE, r"float32 \[1, 24000\]"),
        ((babble(1) * 32768).astype(np.int16), RATE, "int16"),
        (babble(1), 0, "positive integer in Hz, not 0"),
        (babble(1), 24_000.0, r"positive integer in Hz, not 24000\.0"),
        (babble(1), 100, "100 Hz, 4000 to 384000 Hz are taken"),
        (babble(1), 655_350, "655350 Hz, 4000 to"),
    ],
)
def test_lengths_rates_and_forms(wave: np.ndarray, rate: int, words: str) -> None:
    with pytest.raises(AudioError, match=words):
        check_reference(wave, rate)


# --- taken


@pytest.mark.parametrize("name", ["espeak_en.wav", "rms_16k.wav", "slt_44k_stereo.flac"])
def test_recordings_are_taken_bit_for_bit(name: str) -> None:
    wave, rate = decode_audio(CLIPS / name)
    np.testing.assert_array_equal(check_reference(wave, rate), wave)


@pytest.mark.parametrize(
    "wave",
    [
        babble(0.5),
        babble(6),
        np.concatenate([silence(0.9), babble(3), silence(0.9)]),
        np.concatenate([babble(1), silence(5), babble(1), silence(3), babble(1)]),
        babble(3) * np.float32(0.003),
        babble(3) + np.float32(0.5),
        babble(3) + noise(3, level=0.1),
        babble(3) * np.float32(3.5),  # a lossy decoder's overshoot
    ],
)
def test_voices_are_taken_bit_for_bit(wave: np.ndarray) -> None:
    np.testing.assert_array_equal(check_reference(wave, RATE), wave)


@pytest.mark.parametrize("level", [0.0, 5e-4])
@pytest.mark.parametrize(("before", "after"), [(12, 0), (0, 12), (3, 40), (1.1, 1.1)])
def test_long_silence_at_the_ends_is_skipped(before: float, after: float, level: float) -> None:
    speech = babble(4)
    wave = np.concatenate([silence(before), speech, silence(after)])
    wave += noise(len(wave) / RATE, level)
    heard = check_reference(wave, RATE)
    assert len(heard) / RATE == pytest.approx(4 + 0.2 * (before > 0) + 0.2 * (after > 0), abs=0.05)
    assert find_sound(heard, RATE).seconds == pytest.approx(4, abs=0.05)
    assert heard.flags.c_contiguous and heard.dtype == np.float32


def test_floats_on_the_scale_of_integers_are_scaled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="chatterbox_vllm")  # a command may have quietened it
    speech = babble(3)
    for scale in (2.0**15, 2.0**23, 2.0**31):
        heard = check_reference(speech * np.float32(scale), RATE)
        np.testing.assert_allclose(heard, speech, atol=1e-6)
    assert caplog.text.count("floats must be in -1..1; they were divided by") == 3
    assert np.abs(check_reference(speech * np.float32(20), RATE)).max() == pytest.approx(1)


def test_a_clipped_recording_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="chatterbox_vllm"):
        check_reference(babble(3), RATE)
        assert not caplog.records
        check_reference(np.clip(babble(3) * 5, -1, 1), RATE)
    assert "is clipped" in caplog.text


@settings(max_examples=40, deadline=None)
@given(
    before=st.floats(0, 3),
    speech=st.floats(0.6, 3),
    after=st.floats(0, 3),
    gain=st.floats(-30, 0),
    seed=st.integers(0, 100),
)
def test_a_voice_is_never_lost(before: float, speech: float, after: float, gain: float, seed: int) -> None:
    voice = babble(speech, seed=seed) * np.float32(10 ** (gain / 20))
    heard = check_reference(np.concatenate([silence(before), voice, silence(after)]), RATE)
    # All of the voice is in it, and no more than a second of silence before it.
    assert any(np.array_equal(heard[i : i + len(voice)], voice) for i in _starts(heard, voice))
    sound = find_sound(heard, RATE)
    assert sound.start <= 1.1 * RATE and len(heard) - sound.end <= 1.1 * RATE


def _starts(heard: np.ndarray, voice: np.ndarray) -> np.ndarray:
    return np.flatnonzero(heard == voice[0])


@pytest.mark.parametrize("rate", [4000, 8000, 22_050, 44_100, 96_000, 384_000])
def test_every_rate_is_judged_alike(rate: int) -> None:
    time = np.arange(3 * rate) / rate
    assert steady_pitch(np.sin(2 * np.pi * 440 * time).astype(np.float32), rate) == pytest.approx(440, abs=10)
    assert steady_pitch(np.random.default_rng(0).standard_normal(3 * rate).astype(np.float32), rate) is not None
    assert steady_pitch(babble(3, rate), rate) is None
    assert find_sound(babble(3, rate), rate).seconds == pytest.approx(3, abs=0.05)
