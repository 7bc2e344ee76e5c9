"""How far one batch of waveforms is from another: mels and spectra at several resolutions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.audio.features import RATE_24K, mel_filterbank

# Window sizes and mel bands, as in Descript's audio codec (Kumar et al. 2023, arXiv 2306.06546).
_MELS = {2048: 160, 1024: 80, 512: 40, 256: 20, 128: 10, 64: 5}
_SPECTRA = (2048, 1024, 512)
# White noise of this deviation is where logarithms end: -80 dB of full scale, below what is heard beside speech.
_QUIETEST = 1e-4


class SpectralDistance(nn.Module):
    """Mean absolute differences of logarithms. All of it runs in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        for size, bands in _MELS.items():
            filters = mel_filterbank(RATE_24K, size, bands, RATE_24K / 2)
            self.register_buffer(f"filters_{size}", filters, persistent=False)
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def forward(self, made: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The distances of the mels, summed over resolutions, and of the spectra: of waves [rows, samples] float32."""
        mels = made.new_zeros(())
        spectra = made.new_zeros(())
        both = torch.cat([made, target])
        for size in _MELS:
            magnitude = self._magnitude(both, size)
            quiet = _QUIETEST * math.sqrt(0.375 * size)  # its magnitude behind a Hann window
            # The filters have unit area over Hz, so they sum to one over the distance of two bins.
            mel = (getattr(self, f"filters_{size}") @ magnitude).clamp(min=quiet * size / RATE_24K).log10()
            mels = mels + F.l1_loss(*mel.chunk(2))
            if size in _SPECTRA:
                a, b = magnitude.chunk(2)
                logarithms = F.l1_loss((a + quiet).log10(), (b + quiet).log10())
                spectra = spectra + logarithms + (a - b).norm() / b.norm().clamp(min=1e-3)
        return mels, spectra / len(_SPECTRA)

    def _magnitude(self, wave: torch.Tensor, size: int) -> torch.Tensor:
        return magnitude(wave, getattr(self, f"window_{size}"))


def magnitude(wave: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """[rows, samples] to [rows, bins, frames], a quarter of the window from one frame to the next."""
    size = len(window)
    spectrum = torch.stft(wave, size, size // 4, window=window, pad_mode="reflect", return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(-1) + 1e-9).sqrt()
