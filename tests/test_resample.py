"""Resampling a wave that comes part by part, and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chatterbox_vllm.audio.resample import StreamResampler, resample
from chatterbox_vllm.audio.resample_filter import filter_resample


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


@pytest.mark.parametrize(("rate_in", "rate_out"), [(24_000, 32_000), (32_000, 24_000)])
@pytest.mark.parametrize("samples", [960, 24_960])
def test_the_filter_is_soxrs(rate_in: int, rate_out: int, samples: int) -> None:
    draw = np.random.default_rng(samples)
    waves = draw.uniform(-1, 1, (2, samples)).astype(np.float32)
    filtered = filter_resample(torch.from_numpy(waves), rate_in, rate_out).numpy()
    for own, wave in zip(filtered, waves, strict=True):
        np.testing.assert_allclose(own, resample(wave, rate_in, rate_out), rtol=0, atol=2e-6)
