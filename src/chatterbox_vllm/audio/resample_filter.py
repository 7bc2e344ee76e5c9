"""soxr's resampling as one convolution, for a GPU: there soxr is in the way, since it keeps Python's lock."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from chatterbox_vllm.audio.resample import polyphase, resample

# How far soxr's HQ filter reaches, in samples of the lower rate: behind these its response stays below 1e-7 (measured
# for 24 and 32 kHz).
_REACH = 99


def filter_resample(waves: torch.Tensor, rate_in: int, rate_out: int) -> torch.Tensor:
    """What `resample` gives of the same waves, within 2e-6 of full scale, on any device.

    Args:
        waves: float32 [N, samples], a whole number of samples at the other rate, too.
        rate_in: their rate in Hz.
        rate_out: the rate wanted in Hz.

    Returns:
        float32 [N, samples * rate_out / rate_in].
    """
    divisor = math.gcd(rate_in, rate_out)
    up, down = rate_out // divisor, rate_in // divisor
    return polyphase(waves, _filters(up, down, rate_in, rate_out, waves.device), down)


@lru_cache(maxsize=8)
def _filters(up: int, down: int, rate_in: int, rate_out: int, device: torch.device) -> torch.Tensor:
    """One filter for every output phase, float32 [up, 1, taps]: what soxr makes of single impulses."""
    steps = math.ceil(_REACH * max(1.0, rate_out / rate_in) / up) + 1  # of `down` input and `up` output samples
    middle = 2 * steps
    responses = []  # of an impulse at each input phase
    for phase in range(down):
        impulse = np.zeros(2 * middle * down, np.float64)
        impulse[middle * down + phase] = 1.0
        responses.append(resample(impulse, rate_in, rate_out).reshape(-1, up))
    # Input step `middle + d` is heard in output step `middle`; the same for all steps is that of `middle - d`.
    there = np.stack(responses)[:, middle - steps : middle + steps + 1][:, ::-1]
    return torch.from_numpy(there.transpose(2, 1, 0).reshape(up, 1, -1).astype(np.float32)).to(device)
