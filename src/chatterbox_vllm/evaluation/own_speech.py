"""Is it speech? What can be told of a wave without understanding it, and what is wrong with one that is none."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from chatterbox_vllm.audio.features import RATE_24K, mel_filterbank

_FFT, _HOP = 1024, 256  # 43 ms and 11 ms at 24 kHz
_BANDS = 40
_LOWEST, _HIGHEST = 80.0, 8000.0  # Hz, where speech is
# A frame counts where it is at most so much below the loudest ones, and above what 16 bits can hold.
_RANGE_DB, _FLOOR_DB = 45.0, -75.0
_DEPTH_DB = 80.0  # of a band below the loudest one: what is less is rounding
_PITCH = 60.0, 400.0  # Hz
_PERIODIC = 0.5  # of the autocorrelation at its lag 0
_LEAST_PERIOD = 0.2  # seconds that a loop takes; shorter ones are a hum
_LEAST_OVERLAP = 0.5  # seconds that repeat
_AT_PEAK = 0.999  # of the largest sample


@dataclass(frozen=True)
class SpeechFigures:
    """What was measured of one utterance.

    Attributes:
        seconds: its length.
        level: of its sounding frames, dB below full scale; minus infinity for silence.
        flatness: of their spectrum from 80 to 8000 Hz, geometric over arithmetic mean of the power: 0 for a tone, 0.56
            for white noise. Speech has about 0.02.
        voiced: share of them that repeat at a pitch of 60 to 400 Hz.
        movement: how much the spectrum changes, in nats: the standard deviation of a band's log magnitude over them.
        repetition: the largest correlation of the spectrum with itself at least 0.2 s later, up to 1.
        clipped: share of samples that are as large as the largest.
        spectrum: mean log magnitude of each band, [40] in nats.
    """

    seconds: float
    level: float
    flatness: float
    voiced: float
    movement: float
    repetition: float
    clipped: float
    spectrum: np.ndarray


def measure_speech(wave: np.ndarray) -> SpeechFigures:
    """The figures of a wave [samples] float32 at 24 kHz."""
    samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)).double()
    seconds, peak = len(samples) / RATE_24K, float(samples.abs().max()) if len(samples) else 0.0
    power = _power(samples)
    loudness = 10 * (power.sum(1) / _full_scale()).clamp(min=1e-20).log10()
    sounding = loudness > max(float(loudness.quantile(0.95)) - _RANGE_DB, _FLOOR_DB)
    if not bool(sounding.any()):
        return SpeechFigures(seconds, -math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, np.full(_BANDS, -20.0))
    bands = _log_bands(power)
    heard, spectra = bands[sounding], power[sounding][:, _speech_bins()]
    flatness = (spectra.clamp(min=1e-20).log().mean(1).exp() / spectra.mean(1).clamp(min=1e-20)).mean()
    return SpeechFigures(
        seconds=seconds,
        level=float(10 * (10 ** (loudness[sounding] / 10)).mean().log10()),
        flatness=float(flatness),
        voiced=float((_periodicity(power[sounding]) > _PERIODIC).double().mean()),
        movement=float(heard.std(0, correction=0).mean()),
        repetition=_repetition(bands),
        clipped=float((samples.abs() >= _AT_PEAK * peak).double().mean()),
        spectrum=heard.mean(0).numpy(),
    )


def _power(samples: torch.Tensor) -> torch.Tensor:
    """[frames, bins]."""
    samples = torch.nn.functional.pad(samples, (0, max(0, _FFT - len(samples))))
    spectra = torch.stft(samples, _FFT, _HOP, window=_window(), center=False, return_complex=True)
    return spectra.abs().square().T


def _window() -> torch.Tensor:
    return torch.hann_window(_FFT, dtype=torch.float64)


def _full_scale() -> float:
    """The summed power of a frame of samples of size one."""
    return float(_window().square().sum()) * _FFT / 2


def _speech_bins() -> slice:
    width = RATE_24K / _FFT
    return slice(math.ceil(_LOWEST / width), math.floor(_HIGHEST / width) + 1)


def _log_bands(power: torch.Tensor) -> torch.Tensor:
    """Log magnitudes [frames, bands] of triangular bands on the mel scale, none far below the largest."""
    filters = mel_filterbank(RATE_24K, _FFT, _BANDS, _HIGHEST, _LOWEST).double()
    bands = power @ filters.T
    return 0.5 * bands.clamp(min=max(float(bands.max()) * 10 ** (-_DEPTH_DB / 10), 1e-17)).log()


def _periodicity(power: torch.Tensor) -> torch.Tensor:
    """[frames]: the largest autocorrelation at a lag of a voice's pitch, over that at lag 0."""
    lags = slice(round(RATE_24K / _PITCH[1]), round(RATE_24K / _PITCH[0]) + 1)
    # Circular over the frame; the window's own autocorrelation is divided out.
    found, own = torch.fft.irfft(power), torch.fft.irfft(torch.fft.rfft(_window()).abs().square())
    return (found[:, lags] / own[lags]).amax(1) / (found[:, 0] / own[0]).clamp(min=1e-20)


def _repetition(bands: torch.Tensor) -> float:
    """Of log magnitudes [frames, bands]."""
    least = round(_LEAST_PERIOD * RATE_24K / _HOP)
    overlap = round(_LEAST_OVERLAP * RATE_24K / _HOP)
    moved = bands - bands.mean(0)
    lags = range(least, len(bands) - overlap)
    return max((_correlation(moved[:-lag], moved[lag:]) for lag in lags), default=0.0)


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-20))
