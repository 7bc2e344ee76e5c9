"""How loud a recording is, by ITU-R BS.1770-4: integrated loudness in LUFS.

The two filters are computed for the wave's own rate, with the parameters that `pyloudnorm` has for them (Steinmetz and
Reiss, pyloudnorm: A simple yet flexible loudness meter in Python, 2021), as voices were measured with it in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

_BLOCK_SECONDS, _STEP_SECONDS = 0.4, 0.1
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0
_OFFSET = -0.691
# The slower filter has fallen below 1e-24 of its first value after so long.
_RESPONSE_SECONDS = 0.25
_CHUNK = 1 << 18

Biquad = tuple[Sequence[float], Sequence[float]]


def integrated_loudness(wave: np.ndarray, rate: int) -> float:
    """In LUFS; minus infinity for a wave shorter than 0.4 s, or in which nothing is as loud as -70 LUFS.

    Args:
        wave: floats [samples], mono.
        rate: in Hz.
    """
    powers = _block_powers(_weighted(wave, rate), rate)
    powers = powers[_loudness(powers) >= _ABSOLUTE_GATE]
    if not len(powers):
        return -math.inf
    gate = _loudness(powers.mean()) + _RELATIVE_GATE
    loudness = _loudness(powers)
    return float(_loudness(powers[(loudness > gate) & (loudness > _ABSOLUTE_GATE)].mean()))


def at_loudness(wave: np.ndarray, rate: int, loudness: float) -> np.ndarray:
    """The wave as float32 at another loudness in LUFS; as it is where it has none."""
    gain = 10.0 ** ((loudness - integrated_loudness(wave, rate)) / 20)
    return wave * np.float32(gain) if math.isfinite(gain) else wave


def _loudness(power: np.ndarray | np.floating) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return _OFFSET + 10 * np.log10(power)


def _block_powers(wave: np.ndarray, rate: int) -> np.ndarray:
    """Mean squares of blocks of 0.4 s, one every 0.1 s."""
    count = round((len(wave) / rate - _BLOCK_SECONDS) / _STEP_SECONDS) + 1
    if len(wave) < _BLOCK_SECONDS * rate:
        return np.zeros(0)
    energy = np.concatenate([[0.0], np.cumsum(wave**2)])
    starts = np.array([int(_BLOCK_SECONDS * (i * 0.25) * rate) for i in range(count)])
    ends = np.array([int(_BLOCK_SECONDS * (i * 0.25 + 1) * rate) for i in range(count)])
    return (energy[ends.clip(max=len(wave))] - energy[starts]) / (_BLOCK_SECONDS * rate)


def _weighted(wave: np.ndarray, rate: int) -> np.ndarray:
    """The wave through both filters, float64, by overlapping and adding."""
    response = _response(rate)
    size = 1 << (_CHUNK + len(response) - 1).bit_length()
    spectrum = np.fft.rfft(response, size)
    out = np.zeros(len(wave) + len(response))
    for start in range(0, len(wave), _CHUNK):
        piece = np.fft.irfft(np.fft.rfft(wave[start : start + _CHUNK].astype(np.float64), size) * spectrum, size)
        end = min(len(out), start + size)
        out[start:end] += piece[: end - start]
    return out[: len(wave)]


@lru_cache(maxsize=4)
def _response(rate: int) -> np.ndarray:
    """Both filters' impulse response, cut off where nothing is left of it."""
    impulse = [1.0] + [0.0] * (round(_RESPONSE_SECONDS * rate) - 1)
    for biquad in (_high_shelf(rate, 4.0, 1 / math.sqrt(2), 1500.0), _high_pass(rate, 0.5, 38.0)):
        impulse = _filtered(impulse, biquad)
    return np.array(impulse)


def _filtered(wave: list[float], biquad: Biquad) -> list[float]:
    (b0, b1, b2), (a0, a1, a2) = biquad
    out, x1, x2, y1, y2 = [], 0.0, 0.0, 0.0, 0.0
    for x in wave:
        y = (b0 * x + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2) / a0
        out.append(y)
        x1, x2, y1, y2 = x, x1, y, y1
    return out


# Bristow-Johnson's Audio EQ Cookbook.
def _high_shelf(rate: int, gain_db: float, q: float, hertz: float) -> Biquad:
    a, w = 10 ** (gain_db / 40), 2 * math.pi * hertz / rate
    cosine, slope = math.cos(w), 2 * math.sqrt(a) * math.sin(w) / (2 * q)
    numerator = (
        a * ((a + 1) + (a - 1) * cosine + slope),
        -2 * a * ((a - 1) + (a + 1) * cosine),
        a * ((a + 1) + (a - 1) * cosine - slope),
    )
    denominator = (
        (a + 1) - (a - 1) * cosine + slope,
        2 * ((a - 1) - (a + 1) * cosine),
        (a + 1) - (a - 1) * cosine - slope,
    )
    return numerator, denominator


def _high_pass(rate: int, q: float, hertz: float) -> Biquad:
    w = 2 * math.pi * hertz / rate
    cosine, alpha = math.cos(w), math.sin(w) / (2 * q)
    return ((1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2), (1 + alpha, -2 * cosine, 1 - alpha)
