"""Pieces of speech into one wave: pauses as long as wanted, no clicks, nothing cut off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_vllm.audio.join import Joiner, join_segments
from chatterbox_vllm.errors import ConfigError

RATE = 24_000


def piece(before: float, sound: float, after: float, seed: int = 0) -> np.ndarray:
    """Seconds of near silence, of a loud tone with noise, of near silence."""
    draw = np.random.default_rng(seed)
    lengths = [round(seconds * RATE) for seconds in (before, sound, after)]
    wave = 1e-4 * draw.standard_normal(sum(lengths))
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(lengths[1]) / RATE) + 0.05 * draw.standard_normal(lengths[1])
    wave[lengths[0] : lengths[0] + lengths[1]] += tone
    return wave.astype(np.float32)


def gaps(wave: np.ndarray) -> list[float]:
    """Seconds of the silences between sounds, to within a frame of 10 ms."""
    loud = np.flatnonzero(np.abs(wave) > 0.01)
    steps = np.diff(loud)
    return [step / RATE for step in steps[steps > 0.01 * RATE]]


def test_one_piece_is_unchanged() -> None:
    wave = piece(0.3, 0.5, 0.4)
    assert np.array_equal(join_segments([wave], [0.0], RATE), wave)
    tensor = torch.from_numpy(wave).unsqueeze(0)
    assert np.array_equal(join_segments([tensor], [0.5], RATE), wave)


@pytest.mark.parametrize("pause", [0.1, 0.35, 0.7])
@pytest.mark.parametrize("own", [0.0, 0.05, 0.3, 1.0])
def test_pauses_are_as_long_as_wanted(pause: float, own: float) -> None:
    waves = [piece(0.2, 0.5, own), piece(own, 0.5, own, 1), piece(own, 0.5, 0.25, 2)]
    whole = join_segments(waves, [pause, pause, 0.0], RATE)
    assert gaps(whole) == pytest.approx([pause, pause], abs=0.021)
    # The ends of the whole are as they were.
    assert np.array_equal(whole[: round(0.6 * RATE)], waves[0][: round(0.6 * RATE)])
    assert np.array_equal(whole[-round(0.6 * RATE) :], waves[2][-round(0.6 * RATE) :])


def test_no_pause_keeps_what_carries_a_sound_out_and_in() -> None:
    waves = [piece(0.2, 0.5, 0.3), piece(0.3, 0.5, 0.2)]
    assert gaps(join_segments(waves, [0.0, 0.0], RATE)) == pytest.approx([0.04], abs=0.021)


def test_silence_inside_a_piece_stays() -> None:
    wave = np.concatenate([piece(0.1, 0.3, 0.5), piece(0.5, 0.3, 0.1, 1)])
    whole = join_segments([wave, wave], [0.2, 0.0], RATE)
    assert gaps(whole) == pytest.approx([1.0, 0.2, 1.0], abs=0.021)
    body = wave[: round(1.68 * RATE)]
    assert np.array_equal(whole[: len(body)], body)


def test_no_clicks() -> None:
    """Pieces that begin and end in full sound, and silence with an offset, meet without a jump."""
    loud = np.full(RATE, 0.5, np.float32)
    for pause in (0.0, 0.2):
        whole = join_segments([loud, -loud, loud], [pause] * 3, RATE)
        assert np.abs(np.diff(whole)).max() < 0.01
        assert whole[0] == whole[-1] == 0.5


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 0.3)] * 3, st.floats(0, 1)), min_size=1, max_size=5),
    st.sampled_from([8_000, 24_000]),
)
def test_any_pieces(parts: list[tuple[float, float, float, float]], rate: int) -> None:
    waves = [piece(*part[:3], seed=i) for i, part in enumerate(parts)]
    pauses = [part[3] for part in parts]
    whole = join_segments(waves, pauses, rate)
    assert whole.dtype == np.float32 and np.isfinite(whole).all()
    assert len(whole) <= sum(map(len, waves)) + sum(round(pause * rate) for pause in pauses)
    joiner = Joiner(rate)
    chunks = [
        joiner.add(wave, pause, i == len(waves) - 1) for i, (wave, pause) in enumerate(zip(waves, pauses, strict=True))
    ]
    assert np.array_equal(np.concatenate(chunks), whole)


def test_odd_pieces() -> None:
    wave, zeros, none = piece(0.1, 0.2, 0.1), np.zeros(RATE // 2, np.float32), np.zeros(0, np.float32)
    assert np.array_equal(join_segments([none, wave, none], [0.5] * 3, RATE)[:1000], wave[:1000])
    assert join_segments([none], [0.0], RATE).shape == (0,)
    assert len(join_segments([wave, zeros, wave], [0.1] * 3, RATE)) > len(zeros) + len(wave)
    one = np.ones(1, np.float32)
    assert len(join_segments([one, one], [0.0, 0.0], RATE)) == 2


def test_bad_arguments() -> None:
    wave = piece(0.1, 0.2, 0.1)
    with pytest.raises(ConfigError, match="not 1 for 2"):
        join_segments([wave, wave], [0.1], RATE)
    with pytest.raises(ConfigError, match="at least one"):
        join_segments([], [], RATE)
    with pytest.raises(ConfigError, match=r"shape \(2, 4800\)"):
        join_segments([wave.reshape(2, -1)], [0.0], RATE)
    for pause in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="pause"):
            join_segments([wave, wave], [pause, 0.0], RATE)
