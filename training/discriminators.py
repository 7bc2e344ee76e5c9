"""What the vocoder is judged by: nets that tell its audio from recordings.

Multi-period discriminators (HiFi-GAN, Kong et al. 2020, arXiv 2010.05646) and multi-resolution ones on complex spectra
(EnCodec, Défossez et al. 2022, arXiv 2210.13438), both much narrower than published: the vocoder is small, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (2048, 1024, 512)
_SLOPE = 0.1
Judged = tuple[list[torch.Tensor], list[list[torch.Tensor]]]


class Discriminators(nn.Module):
    """Of waves [rows, samples]: a map of scores and the activations of every layer, for each discriminator."""

    def __init__(self, period_channels: Sequence[int] = (16, 64, 128, 256), spectrum_channels: int = 32):
        super().__init__()
        self.judges = nn.ModuleList(
            [PeriodDiscriminator(period, period_channels) for period in PERIODS]
            + [SpectrumDiscriminator(size, spectrum_channels) for size in WINDOWS]
        )

    def forward(self, wave: torch.Tensor) -> Judged:
        scores, activations = [], []
        for judge in self.judges:
            layers = judge(wave)
            scores.append(layers[-1])
            activations.append(layers[:-1])
        return scores, activations


class PeriodDiscriminator(nn.Module):
    """Sees the wave as an image, `period` samples wide."""

    def __init__(self, period: int, channels: Sequence[int]):
        super().__init__()
        self.period = period
        sizes = [1, *channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), padding=(2, 0))) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.layers.append(weight_norm(nn.Conv2d(sizes[-1], sizes[-1], (5, 1), padding=(2, 0))))
        self.layers.append(weight_norm(nn.Conv2d(sizes[-1], 1, (3, 1), padding=(1, 0))))

    def forward(self, wave: torch.Tensor) -> list[torch.Tensor]:
        missing = -wave.shape[-1] % self.period
        x = F.pad(wave[:, None], (0, missing), mode="reflect").unflatten(-1, (-1, self.period))
        return _through(self.layers, x)


class SpectrumDiscriminator(nn.Module):
    """Sees real and imaginary parts of a short-time spectrum."""

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(size), persistent=False)

        def conv(a: int, b: int, kernel: tuple[int, int], stride: int = 1) -> nn.Module:
            edges = (kernel[0] // 2, kernel[1] // 2)
            return weight_norm(nn.Conv2d(a, b, kernel, (stride, 1), padding=edges))

        # Frequencies are halved by every layer but the first and the last ones.
        self.layers = nn.ModuleList(
            [conv(2, channels, (7, 3), 2), *(conv(channels, channels, (7, 3), 2) for _ in range(3))]
            + [conv(channels, channels, (3, 3)), conv(channels, 1, (3, 3))]
        )

    def forward(self, wave: torch.Tensor) -> list[torch.Tensor]:
        size = len(self.window)
        spectrum = torch.stft(
            wave.float(), size, size // 4, window=self.window, pad_mode="reflect", normalized=True, return_complex=True
        )
        return _through(self.layers, torch.view_as_real(spectrum).permute(0, 3, 1, 2).contiguous())


def _through(layers: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for i, layer in enumerate(layers):
        x = layer(x)
        if i < len(layers) - 1:
            x = F.leaky_relu(x, _SLOPE)
        found.append(x)
    return found


def discriminator_loss(judge: Discriminators, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Least squares: recordings to one, made audio to zero."""
    scores, _ = judge(torch.cat([target, made.detach()]))
    total = made.new_zeros(())
    for score in scores:
        real, fake = score.float().chunk(2)
        total = total + (1 - real).square().mean() + fake.square().mean()
    return total / len(scores)


def generator_losses(
    judge: Discriminators, made: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far `made` is from being taken for a recording, and how its activations differ, relative to their size."""
    with torch.no_grad():
        _, wanted = judge(target)
    scores, found = judge(made)
    adversarial = sum((1 - score.float()).square().mean() for score in scores) / len(scores)
    matching, layers = made.new_zeros(()), 0
    for a, b in zip(found, wanted, strict=True):
        for x, y in zip(a, b, strict=True):
            matching = matching + F.l1_loss(x.float(), y.float()) / y.float().abs().mean().clamp(min=1e-3)
            layers += 1
    return adversarial, matching / layers
