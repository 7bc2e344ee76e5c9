"""Spectral features of reference audio: what each enrolment net hears.

Every function takes one mono wave, float32 [samples] in -1..1, on any device, and computes in float32 there.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

# 16 kHz analysis, shared by the voice encoder, the speech tokenizer and the filterbank: 25 ms windows every 10 ms.
RATE_16K = 16_000
HOP_16K = 160
_WINDOW_16K = 400

RATE_24K = 24_000
HOP_24K = 480
_FFT_24K = 1920
_PROMPT_MEL_MAX_HZ = 8000.0

_TRIM_FRAME = 2048
_TRIM_HOP = 512
_TRIM_DB = 20.0
_TRIM_POWER_FLOOR = 1e-10

_FBANK_FFT = 512
_FBANK_MIN_HZ = 20.0
_FBANK_PREEMPHASIS = 0.97
_POVEY_EXPONENT = 0.85


def trim_silence(wave: torch.Tensor) -> tuple[int, int]:
    """The span of samples between leading and trailing silence.

    Silence is a frame (2048 samples every 512, zero-padded ends) whose power lies 20 dB or more below the loudest
    frame's, no power counting below -100 dB: `librosa.effects.trim(top_db=20)`.

    Returns:
        (start, end) in samples; the whole of a wave that is digital silence.
    """
    samples = wave.shape[0]
    blocks_per_frame = _TRIM_FRAME // _TRIM_HOP
    blocks = samples // _TRIM_HOP + blocks_per_frame
    padded = F.pad(wave, (_TRIM_FRAME // 2, _TRIM_FRAME // 2))[: blocks * _TRIM_HOP]
    block_energy = padded.double().square().view(blocks, _TRIM_HOP).sum(1)
    power = block_energy.unfold(0, blocks_per_frame, 1).sum(1) / _TRIM_FRAME
    power = power.clamp(min=_TRIM_POWER_FLOOR)
    loud = (power > power.max() * 10 ** (-_TRIM_DB / 10)).nonzero()[:, 0]
    return int(loud[0]) * _TRIM_HOP, min(samples, (int(loud[-1]) + 1) * _TRIM_HOP)


def voice_encoder_mel(wave: torch.Tensor, num_mels: int) -> torch.Tensor:
    """Power mel for the voice encoder, neither logarithmic nor normalised.

    Args:
        wave: at 16 kHz, longer than 200 samples.

    Returns:
        float32 [1 + samples // 160, num_mels].
    """
    power = _stft(wave, _WINDOW_16K, HOP_16K).abs() ** 2
    return (mel_filterbank(RATE_16K, _WINDOW_16K, num_mels, RATE_16K / 2).to(wave.device) @ power).T


def speech_tokenizer_mel(wave: torch.Tensor, filterbank: torch.Tensor) -> torch.Tensor:
    """Log mel for the speech tokenizer: `speech_tokenizer_log` of all frames, scaled by the clip's own maximum.

    Returns:
        float32 [num_mels, samples // 160]; the last STFT frame is dropped.
    """
    log = speech_tokenizer_log(wave, filterbank, 0, len(wave) // HOP_16K)
    return scaled_as_whisper(log, log.max())


def speech_tokenizer_log(wave: torch.Tensor, filterbank: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """log10 of the mel power of frames `first` to `end` of a clip, whose ends are reflected.

    Args:
        wave: at 16 kHz, longer than 200 samples.
        filterbank: float32 [num_mels, 201], as the checkpoint holds it.

    Returns:
        float32 [num_mels, end - first].
    """
    edge = _WINDOW_16K // 2
    start, stop = first * HOP_16K - edge, (end - 1) * HOP_16K + edge
    seen = wave[max(0, start) : stop]
    padded = F.pad(seen[None], (max(0, -start), max(0, stop - len(wave))), mode="reflect")[0]
    power = _stft(padded, _WINDOW_16K, HOP_16K, center=False).abs() ** 2
    return (filterbank @ power).clamp(min=1e-10).log10()


def scaled_as_whisper(log: torch.Tensor, loudest: torch.Tensor) -> torch.Tensor:
    """Whisper's scaling of log10 mel power: at most 8 below the clip's maximum, (x + 4) / 4."""
    return (log.maximum(loudest - 8.0) + 4.0) / 4.0


def prompt_mel(wave: torch.Tensor, num_mels: int) -> torch.Tensor:
    """Log-magnitude mel of the flow's prompt, 50 frames/s, 0 to 8 kHz: what the flow itself predicts.

    Args:
        wave: at 24 kHz, longer than 720 samples.

    Returns:
        float32 [samples // 480, num_mels].
    """
    edge = (_FFT_24K - HOP_24K) // 2
    padded = F.pad(wave[None], (edge, edge), mode="reflect")[0]
    spectrum = torch.view_as_real(_stft(padded, _FFT_24K, HOP_24K, center=False))
    magnitude = (spectrum.square().sum(-1) + 1e-9).sqrt()
    filterbank = mel_filterbank(RATE_24K, _FFT_24K, num_mels, _PROMPT_MEL_MAX_HZ).to(wave.device)
    return (filterbank @ magnitude).clamp(min=1e-5).log().T


def kaldi_fbank(wave: torch.Tensor, num_mels: int) -> torch.Tensor:
    """Kaldi's log filterbank energies, mean-subtracted over time, for the x-vector net.

    Kaldi's defaults without dither: 25 ms Povey windows every 10 ms, whole windows only, DC removed, pre-emphasis 0.97,
    power spectrum of 512 points, mel bins from 20 Hz to Nyquist, natural logarithm floored at float32's epsilon.

    Args:
        wave: at 16 kHz, at least 400 samples.

    Returns:
        float32 [1 + (samples - 400) // 160, num_mels].
    """
    frames = wave.unfold(0, _WINDOW_16K, HOP_16K)
    frames = frames - frames.mean(1, keepdim=True)
    previous = torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
    frames = frames - _FBANK_PREEMPHASIS * previous
    window = torch.hann_window(_WINDOW_16K, periodic=False, device=wave.device) ** _POVEY_EXPONENT
    power = torch.fft.rfft(frames * window, n=_FBANK_FFT).abs() ** 2
    energies = power @ _kaldi_filterbank(num_mels).to(wave.device).T
    features = energies.clamp(min=torch.finfo(torch.float32).eps).log()
    return features - features.mean(0, keepdim=True)


@lru_cache(maxsize=8)
def mel_filterbank(rate: int, fft_size: int, num_mels: int, max_hz: float, min_hz: float = 0.0) -> torch.Tensor:
    """Triangular filters on Slaney's mel scale, each of unit area: float32 [num_mels, fft_size // 2 + 1].

    Slaney, Auditory Toolbox (1998): linear below 1 kHz (200/3 Hz a mel), logarithmic above (27 mels for a factor 6.4).
    Equal to `librosa.filters.mel`, whose import takes seconds.
    """
    hz_per_mel, knee_hz = 200.0 / 3, 1000.0
    knee, log_step = knee_hz / hz_per_mel, math.log(6.4) / 27.0

    def mel(hz: float) -> float:
        return hz / hz_per_mel if hz < knee_hz else knee + math.log(hz / knee_hz) / log_step

    mels = np.linspace(mel(min_hz), mel(max_hz), num_mels + 2)
    edges = np.where(mels < knee, hz_per_mel * mels, knee_hz * np.exp(log_step * (mels - knee)))
    bins = np.fft.rfftfreq(fft_size, 1.0 / rate)
    ramps = edges[:, None] - bins[None]
    widths = np.diff(edges)
    rising = -ramps[:-2] / widths[:-1, None]
    falling = ramps[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    area = 2.0 / (edges[2:] - edges[:-2])
    return torch.from_numpy((triangles * area[:, None]).astype(np.float32))


@lru_cache(maxsize=2)
def _kaldi_filterbank(num_mels: int) -> torch.Tensor:
    """Filters that are triangles on the scale 1127 ln(1 + f / 700), Nyquist left out: float32 [num_mels, 257]."""

    def mel(hz: float) -> float:
        return 1127.0 * math.log(1.0 + hz / 700.0)

    low, high = mel(_FBANK_MIN_HZ), mel(RATE_16K / 2)
    step = (high - low) / (num_mels + 1)
    left = low + torch.arange(num_mels)[:, None] * step
    bins = 1127.0 * torch.log(1.0 + torch.arange(_FBANK_FFT // 2) * (RATE_16K / _FBANK_FFT) / 700.0)
    rising = (bins - left) / step
    falling = (left + 2 * step - bins) / step
    return F.pad(torch.minimum(rising, falling).clamp(min=0), (0, 1))


def _stft(wave: torch.Tensor, size: int, hop: int, center: bool = True) -> torch.Tensor:
    """Complex spectrum [size // 2 + 1, frames], periodic Hann window, reflected ends where centred."""
    window = torch.hann_window(size, device=wave.device)
    return torch.stft(wave, size, hop, window=window, center=center, pad_mode="reflect", return_complex=True)
