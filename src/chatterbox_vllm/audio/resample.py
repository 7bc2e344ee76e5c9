"""Resamplers: two of enrolment, as the nets were trained behind different ones, and one for speech that goes out."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import soxr
import torch
import torch.nn.functional as F

# Windowed-sinc design: zero crossings on each side, and the cut-off as a share of the lower Nyquist frequency.
# These are torchaudio's defaults, with which the published model was trained.
_SINC_CROSSINGS = 6
_SINC_ROLLOFF = 0.99


def resample(wave: np.ndarray, rate_in: int, rate_out: int) -> np.ndarray:
    """Resample a mono wave with soxr at its HQ quality: from a file's rate to 24 kHz, and from there to 16 kHz.

    Args:
        wave: float32 [samples].
        rate_in: its rate in Hz.
        rate_out: the rate wanted in Hz.

    Returns:
        float32 [ceil(samples * rate_out / rate_in)]; `wave` itself where the rates are equal.
    """
    if rate_in == rate_out:
        return wave
    # The ratio is formed first, in floating point, as librosa does: it decides the length where it rounds up.
    length = math.ceil(len(wave) * (float(rate_out) / rate_in))
    out = soxr.resample(wave, rate_in, rate_out, quality="HQ")[:length]
    return np.pad(out, (0, length - len(out))).astype(np.float32, copy=False)


class StreamResampler:
    """`resample` of a wave that comes part by part: what the calls return, one after the other, is the whole.

    Args:
        rate_in: the wave's rate in Hz.
        rate_out: the rate wanted in Hz.
    """

    def __init__(self, rate_in: int, rate_out: int):
        self._ratio = float(rate_out) / rate_in
        self._taken = self._given = 0
        equal = rate_in == rate_out
        self._stream = None if equal else soxr.ResampleStream(rate_in, rate_out, 1, dtype="float32", quality="HQ")

    def feed(self, wave: np.ndarray) -> np.ndarray:
        """What is certain after this part: float32 [samples] to float32 [samples], perhaps none yet."""
        if self._stream is None:
            return wave
        self._taken += len(wave)
        out = self._stream.resample_chunk(np.ascontiguousarray(wave, dtype=np.float32))
        self._given += len(out)
        return out

    def finish(self) -> np.ndarray:
        """The rest. Call it once."""
        if self._stream is None:
            return np.empty(0, np.float32)
        left = math.ceil(self._taken * self._ratio) - self._given
        out = self._stream.resample_chunk(np.empty(0, np.float32), last=True)[:left]
        return np.pad(out, (0, left - len(out)))


def sinc_resample(wave: torch.Tensor, rate_in: int, rate_out: int) -> torch.Tensor:
    """Resample with a Hann-windowed sinc: 24 kHz to 16 kHz, for the x-vector and the flow's prompt tokens.

    Args:
        wave: float32 [samples], on any device.
        rate_in: its rate in Hz.
        rate_out: the rate wanted in Hz.

    Returns:
        float32 [ceil(samples * rate_out / rate_in)].
    """
    if rate_in == rate_out:
        return wave
    divisor = math.gcd(rate_in, rate_out)
    up, down = rate_out // divisor, rate_in // divisor
    return polyphase(wave[None], _sinc_filters(up, down).to(wave.device), down)[0]


def polyphase(waves: torch.Tensor, filters: torch.Tensor, down: int) -> torch.Tensor:
    """Resample by a filter for every output phase.

    Args:
        waves: float32 [N, samples].
        filters: float32 [up, 1, taps]; the taps around `down` input samples, as many before as behind them.

    Returns:
        float32 [N, ceil(samples * up / down)].
    """
    reach = (filters.shape[-1] - down) // 2
    # Output sample k * up + phase is filter `phase` laid at input sample k * down.
    phases = F.conv1d(F.pad(waves, (reach, reach + down))[:, None], filters, stride=down)
    return phases.transpose(1, 2).flatten(1)[:, : -(-waves.shape[-1] * len(filters) // down)]


@lru_cache(maxsize=8)
def _sinc_filters(up: int, down: int) -> torch.Tensor:
    """One filter for every output phase: float32 [up, 1, taps]. Designed in float64."""
    cutoff = min(up, down) * _SINC_ROLLOFF
    reach = math.ceil(_SINC_CROSSINGS * down / cutoff)
    taps = torch.arange(-reach, reach + down, dtype=torch.float64) / down
    phases = torch.arange(up, dtype=torch.float64)[:, None, None] / up
    time = ((taps - phases) * cutoff).clamp(-_SINC_CROSSINGS, _SINC_CROSSINGS)
    window = torch.cos(time * (math.pi / (2 * _SINC_CROSSINGS))) ** 2
    return (torch.sinc(time) * window * (cutoff / down)).float()
