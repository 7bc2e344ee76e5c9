"""The vocoder's source: fundamental frequency from the mel, and the harmonics that it excites.

After the neural source-filter model (Wang et al. 2019, arXiv 1904.12088). Everything here is at least float32: a pitch
error grows with every sample that it is summed over.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import HiFTConfig
from chatterbox_vllm.s3gen.ragged import clear
from chatterbox_vllm.s3gen.vocoder.convolutions import WeightNormConv

SAMPLE_RATE = 24_000  # Hz, of the audio that S3Gen makes


class F0Predictor(nn.Module):
    """Mel to fundamental frequency. Published under `mel2wav.f0_predictor.`."""

    def __init__(self, config: HiFTConfig):
        super().__init__()
        sizes = [config.num_mels] + [config.f0_channels] * config.f0_layers
        convs = [WeightNormConv(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.condnet = nn.ModuleDict({str(2 * i): conv for i, conv in enumerate(convs)})
        self.classifier = nn.Linear(config.f0_channels, 1)

    def forward(self, mel: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        """[rows, mels, frames] float32 to [rows, frames] in Hz, float32.

        Args:
            padding: [rows, 1, frames] bool, True in the padding, where `mel` is zero and the result means nothing.
        """
        # In float32 every CPU rounds otherwise, by some 5e-4 Hz, which the phase sums to 1e-3 of a waveform within
        # seconds. On a CPU float64 costs nothing beside the rest; on a card it may.
        dtype = torch.float64 if mel.device.type == "cpu" else torch.float32
        x = mel.to(dtype)
        for conv in self.condnet.values():
            x = F.conv1d(x, conv.weight.to(dtype), conv.bias.to(dtype), padding=conv.padding)
            x = clear(F.elu(x), padding)
        out = F.linear(x.transpose(1, 2), self.classifier.weight.to(dtype), self.classifier.bias.to(dtype))
        return out.squeeze(-1).abs().float()


class HarmonicSource(nn.Module):
    """Fundamental frequency to an excitation signal. Published under `mel2wav.m_source.`."""

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.harmonics + 1, 1)

    def forward(self, f0: torch.Tensor, phase: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Harmonics where voiced, noise where not, mixed into one signal.

        Args:
            f0: [rows, frames] in Hz.
            phase: [rows, harmonics + 1], initial phases in radians.
            noise: [rows, harmonics + 1, samples], standard normal.

        Returns:
            [rows, samples] in (-1, 1).
        """
        return self.continued(f0, phase, noise)[0]

    def continued(
        self,
        f0: torch.Tensor,
        phase: torch.Tensor,
        noise: torch.Tensor,
        cycles: torch.Tensor | None = None,
        since: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward` for the next stretch of frames.

        Args:
            f0, phase, noise: as for `forward`, with zeros in the padding of `f0`, and before `since`.
            cycles: [rows, harmonics + 1] float64, those that the harmonics went through before; None at the start.
            since: [rows] int64, a row's first frame that is new; what comes out for those before it means nothing.

        Returns:
            What `forward` would give for these frames, and the cycles behind each row's last frame.
        """
        config = self.config
        f0 = f0.repeat_interleave(config.samples_per_frame, dim=-1)[:, None]
        multiple = torch.arange(1, config.harmonics + 2, device=f0.device, dtype=torch.float32)[:, None]
        # Summed in float64 and rounded to float32 at every sample: what the published sum does on a CPU, here anywhere.
        steps = f0 * multiple / SAMPLE_RATE
        if cycles is not None and since is not None:
            first = (since * config.samples_per_frame)[:, None, None].expand(-1, steps.shape[1], 1)
            steps = steps.double().scatter_add_(-1, first, cycles[..., None])
        total = steps.cumsum(dim=-1, dtype=torch.float64)
        sines = config.source_amplitude * torch.sin(2 * math.pi * (total.float() % 1) + phase[..., None])
        voiced = f0 > config.voiced_threshold
        loudness = torch.where(voiced, config.source_noise, config.source_amplitude / 3)
        mixed = self.l_linear((sines * voiced + loudness * noise).transpose(1, 2))
        return torch.tanh(mixed.squeeze(-1)), total[..., -1]
