"""Resampling a wave that comes part by part."""

from __future__ import annotations

import numpy as np
import pytest

from chatterbox_vllm.audio.resample import StreamResampler, resample


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("samples", [0, 1, 7, 30_001])
def test_parts_are_the_whole(rate: int, samples: int) -> None:
    draw = np.random.default_rng(rate + samples)
    wave = draw.standard_normal(samples).astype(np.float32)
    resampler, out, start = StreamResampler(24_000, rate), [], 0
    while start < samples:
        size = int(draw.integers(0, 5000))
        out.append(resampler.feed(wave[start : start + size]))
        start += size
    joined = np.concatenate([*out, resampler.finish()])
    whole = resample(wave, 24_000, rate) if samples else wave
    assert joined.dtype == np.float32 and np.array_equal(joined, whole)
