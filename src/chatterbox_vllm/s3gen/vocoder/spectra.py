"""Short-time Fourier transforms of rows of different lengths, each row's edges taken at its own end.

Periodic Hann window, frames centred on their samples with reflected edges, inverse by least squares (Griffin and Lim
1984): for rows of equal length the values of `torch.stft` and `torch.istft`. The transforms are matrix products: a
spectrum is of few points, and cuFFT keeps tables of its own, which a CUDA graph must not depend on.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from chatterbox_vllm.cuda.transfer import to_device
from chatterbox_vllm.s3gen.ragged import Lengths, padding_mask


def stft(wave: torch.Tensor, lengths: Lengths, size: int, hop: int) -> torch.Tensor:
    """Spectra [rows, size + 2, longest // hop + 1] of `wave` [rows, longest] float32: real parts, then imaginary ones.

    Args:
        lengths: samples of each row, multiples of `hop`; spectra past `length // hop + 1` are undefined but finite.
    """
    half = size // 2
    on_device = isinstance(lengths, torch.Tensor)
    if not on_device and padding_mask(lengths, "cpu") is None:
        edged = F.pad(wave[:, None], (half, half), mode="reflect")[:, 0]
    else:
        position = torch.arange(-half, wave.shape[-1] + half, device=wave.device).abs()
        last = (lengths if on_device else to_device(torch.tensor(lengths), wave.device))[:, None] - 1
        edged = wave.gather(-1, (last - (last - position).abs()).clamp(min=0))
    frames = edged.unfold(-1, size, hop) * torch.hann_window(size, device=wave.device)
    return (frames @ _waves(size, wave.device)).transpose(1, 2)


def inverse_stft(spectra: torch.Tensor, lengths: Lengths, size: int, hop: int) -> torch.Tensor:
    """Samples [rows, (longest - 1) * hop] float32 of `spectra` [rows, size + 2, longest], as `stft` gives them.

    Args:
        lengths: spectra of each row; samples past `(length - 1) * hop` are undefined but finite.
        size: a multiple of `hop`.
    """
    window = torch.hann_window(size, device=spectra.device)
    # All but the first and the middle wave stand for their mirror images, too.
    share = F.pad(torch.full((size // 2 - 1,), 2 / size, device=spectra.device), (1, 1), value=1 / size)
    frames = spectra.transpose(1, 2) @ (_waves(size, spectra.device) * share.repeat(2)).T * window
    weights = window.square().expand(1, frames.shape[1], size)
    padding = padding_mask(lengths, spectra.device, spectra.shape[-1])
    if padding is not None:
        frames = frames.masked_fill(padding[..., None], 0)
        weights = weights.masked_fill(padding[..., None], 0)
    kept = slice(size // 2, size // 2 + (frames.shape[1] - 1) * hop)
    total, weight = _overlap_add(frames, hop)[:, kept], _overlap_add(weights, hop)[:, kept]
    # No weight: past the end of a row.
    return torch.where(weight > 0, total / weight, 0)


def _waves(size: int, device: torch.device) -> torch.Tensor:
    """What a real Fourier transform multiplies with: [size, size + 2] float32, cosines and then minus sines."""
    place, wave = (torch.arange(n, device=device) for n in (size, size // 2 + 1))
    # Reduced to one turn while it is an integer, so that zeros are nearly zero.
    angle = (place[:, None] * wave % size).double() * (2 * math.pi / size)
    return torch.cat([angle.cos(), -angle.sin()], dim=1).float()


def _overlap_add(frames: torch.Tensor, hop: int) -> torch.Tensor:
    """[rows, n, size] frames, `hop` apart, summed to [rows, (n - 1) * hop + size] samples."""
    rows, n, size = frames.shape
    total = frames.new_zeros(rows, n + size // hop - 1, hop)
    for i, part in enumerate(frames.split(hop, dim=-1)):
        total[:, i : i + n] += part
    return total.flatten(1)
