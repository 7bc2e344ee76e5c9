"""Loudness against the numbers of pyloudnorm 0.2.0 for the same waves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chatterbox_vllm.audio.loudness import at_loudness, integrated_loudness


def waves(rate: int) -> dict[str, np.ndarray]:
    generator = np.random.Generator(np.random.PCG64(1))
    noise = generator.standard_normal(int(rate * 3.33)) * 0.1
    tone = 0.3 * np.sin(2 * np.pi * 997 * np.arange(rate * 2) / rate)
    # The silence is beyond the absolute gate, the murmur beyond the relative one.
    loud, murmur, end = (generator.standard_normal(count) for count in (rate, rate, rate // 3))
    speech = np.concatenate([loud * 0.2, np.zeros(rate), murmur * 0.004, end * 0.1])
    return {name: wave.astype(np.float32) for name, wave in (("noise", noise), ("tone", tone), ("speech", speech))}


MEASURED = {
    (24_000, "noise"): -17.139327786150616,
    (24_000, "tone"): -13.521016468497882,
    (24_000, "speech"): -12.777751012626313,
    (44_100, "noise"): -16.93294177055197,
    (44_100, "tone"): -13.509965984331737,
    (44_100, "speech"): -12.595984798359382,
    (16_000, "noise"): -17.36134393702017,
    (16_000, "tone"): -13.540774292061778,
    (16_000, "speech"): -12.981010272513005,
}


@pytest.mark.parametrize(("rate", "name"), MEASURED)
def test_integrated_loudness(rate: int, name: str) -> None:
    assert abs(integrated_loudness(waves(rate)[name], rate) - MEASURED[rate, name]) < 1e-6


def test_blocks_at_the_seams_of_long_waves_count_as_all_others() -> None:
    wave = np.tile(waves(24_000)["noise"], 12)  # of 40 s, filtered in four parts
    assert abs(integrated_loudness(wave, 24_000) - MEASURED[24_000, "noise"]) < 0.01
    assert abs(integrated_loudness(wave[: 1 << 18], 24_000) - integrated_loudness(wave, 24_000)) < 0.02


def test_a_wave_is_brought_to_a_loudness() -> None:
    wave = at_loudness(waves(24_000)["speech"], 24_000, -27.0)
    assert wave.dtype == np.float32 and abs(integrated_loudness(wave, 24_000) + 27) < 1e-4


def test_what_has_no_loudness_stays_as_it_is() -> None:
    for wave in (np.zeros(48_000, np.float32), np.ones(9_000, np.float32)):
        assert integrated_loudness(wave, 24_000) == -math.inf
        assert at_loudness(wave, 24_000, -27.0) is wave
