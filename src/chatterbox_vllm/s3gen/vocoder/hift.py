"""HiFT, the vocoder: mel (50 frames/s) to a 24 kHz waveform.

HiFTNet (Li et al. 2023, arXiv 2309.09493): transposed convolutions raise the mel to the rate of short spectra, the
spectrum of a harmonic source joins at every rate, and an inverse STFT of 16 points makes the samples.

Rows of different lengths are exact: after every convolution a row's padding is put back to zero, which is what the
next convolution sees past the end of a row alone, and the spectra's edges are taken at each row's own end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from chatterbox_vllm.checkpoint.config import HiFTConfig
from chatterbox_vllm.s3gen.ragged import Lengths, at_rate, clear, padding_mask
from chatterbox_vllm.s3gen.vocoder.convolutions import Conv, WeightNormConv, WeightNormTranspose, by_frame
from chatterbox_vllm.s3gen.vocoder.source import F0Predictor, HarmonicSource
from chatterbox_vllm.s3gen.vocoder.spectra import inverse_stft, stft

SLOPE = 0.1  # of the leaky ReLU before every upsampling
_LARGEST_MAGNITUDE = 1e2


class HiFT(nn.Module):
    """Published under the prefix `mel2wav.`."""

    def __init__(self, config: HiFTConfig):
        super().__init__()
        self.config = config
        channels = [config.base_channels >> i for i in range(len(config.upsample_rates) + 1)]
        spectrum = config.fft_size + 2
        self.f0_predictor = F0Predictor(config)
        self.m_source = HarmonicSource(config)
        self.conv_pre = WeightNormConv(config.num_mels, channels[0], 7, padding=3)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for i, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels, strict=True)):
            width = channels[i + 1]
            self.ups.append(WeightNormTranspose(channels[i], width, kernel, rate, padding=(kernel - rate) // 2))
            down = math.prod(config.upsample_rates[i + 1 :])
            edges = {"kernel_size": 2 * down, "stride": down, "padding": down // 2} if down > 1 else {"kernel_size": 1}
            self.source_downs.append(Conv(spectrum, width, **edges))
            self.source_resblocks.append(ResBlock(width, config.source_kernels[i], config.resblock_dilations))
            self.resblocks.extend(ResBlock(width, k, config.resblock_dilations) for k in config.resblock_kernels)
        self.conv_post = WeightNormConv(channels[-1], spectrum, 7, padding=3)

    def cast(self, dtype: torch.dtype) -> None:
        """Hold the convolutions in `dtype`; pitch, source and spectra stay float32."""
        for name, child in self.named_children():
            if name not in ("f0_predictor", "m_source"):
                child.to(dtype)

    def forward(
        self, mel: torch.Tensor, lengths: Sequence[int], phase: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Waveforms [rows, samples] float32 within +-`audio_limit`; undefined but finite past a row's end.

        Args:
            mel: [rows, mels, frames] float32, zeros in the padding.
            lengths: frames of each row; the longest fills `mel`.
            phase, noise: see `S3GenNoise`, stacked; zeros in the padding.
        """
        return self.decode(mel, lengths, self.source(mel, lengths, phase, noise))

    def source(
        self, mel: torch.Tensor, lengths: Sequence[int], phase: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """What `forward` excites `mel` with: [rows, samples] float32."""
        return self.m_source(self.pitch(mel, lengths), phase, noise)

    def pitch(self, mel: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Fundamental frequency [rows, frames] in Hz of `mel` [rows, mels, frames], zero in the padding.

        A row at a time: libraries round a row otherwise in another batch, and the source sums pitch over all samples.
        """
        rows = [self.f0_predictor(row[None, :, :length])[0] for row, length in zip(mel, lengths, strict=True)]
        return pad_sequence(rows, batch_first=True)

    def pitch_together(self, mel: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """`pitch` for all rows at once, undefined in the padding; on CUDA a row's last bits depend on the others."""
        return self.f0_predictor(mel, _padding(lengths, mel.device, mel.shape[-1]))

    def decode(self, mel: torch.Tensor, lengths: Lengths, source: torch.Tensor) -> torch.Tensor:
        """Waveforms [rows, samples] from `mel` [rows, mels, frames] and `source` [rows, samples], both float32.

        Lengths on the device are for CUDA graphs: then nothing is read on the host.
        """
        config = self.config
        dtype = self.conv_pre.weight.dtype
        excitation, spectra = self.excitation(source, lengths)
        at_spectra = _padding(spectra, mel.device, excitation.shape[-1])
        excitation = by_frame(clear(excitation, at_spectra).to(dtype))

        x = clear(self.conv_pre(by_frame(mel.to(dtype))), _padding(lengths, mel.device, mel.shape[-1]))
        per_stage = len(config.resblock_kernels)
        rate, last = 1, len(self.ups) - 1
        for i, up in enumerate(self.ups):
            rate *= config.upsample_rates[i]
            x = up(F.leaky_relu(x, SLOPE))
            if i == last:
                # An STFT that is centred on its samples has one spectrum more than hops.
                x = by_frame(F.pad(x, (1, 0), mode="reflect"))
            padding = at_spectra if i == last else _padding(at_rate(lengths, rate), mel.device, x.shape[-1])
            joined = clear(self.source_downs[i](excitation), padding)
            x = clear(x, padding) + self.source_resblocks[i](joined, padding)
            blocks = self.resblocks[i * per_stage : (i + 1) * per_stage]
            x = sum(block(x, padding) for block in blocks) / per_stage

        return self.samples(self.conv_post(F.leaky_relu(x)).float(), spectra)

    def excitation(self, source: torch.Tensor, lengths: Lengths) -> tuple[torch.Tensor, Lengths]:
        """Spectra of `source` [rows, samples] as [rows, 2 * bins, longest], undefined in the padding; each row's count.

        Args:
            lengths: mel frames of each row.
        """
        config = self.config
        rate = config.samples_per_frame
        spectra = stft(source, at_rate(lengths, rate), config.fft_size, config.hop_size)
        return spectra, at_rate(lengths, rate // config.hop_size, 1)

    def samples(self, x: torch.Tensor, spectra: Lengths) -> torch.Tensor:
        """Waveforms [rows, samples] from log magnitudes and phases [rows, 2 * bins, longest] float32.

        Args:
            spectra: of each row.
        """
        config = self.config
        bins = config.fft_size // 2 + 1
        magnitude = x[:, :bins].exp().clamp(max=_LARGEST_MAGNITUDE)
        phase = x[:, bins:].sin()
        parts = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=1)
        wave = inverse_stft(parts, spectra, config.fft_size, config.hop_size)
        return wave.clamp(-config.audio_limit, config.audio_limit)


def _padding(lengths: Lengths, device: torch.device, longest: int) -> torch.Tensor | None:
    padding = padding_mask(lengths, device, longest)
    return None if padding is None else padding[:, None]


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, alpha learned per channel (Ziyin et al. 2020, arXiv 2006.08195)."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = self.alpha[:, None]
        if torch.is_grad_enabled():
            return x + torch.sin(x * alpha).square() / (alpha + 1e-9)
        # In one buffer, as a CPU waits for memory here. A pass that learns needs what is between.
        return (x * alpha).sin_().square_().div_(alpha + 1e-9).add_(x)


class ResBlock(nn.Module):
    """Residual pairs of convolutions, the first of a pair dilated, with Snake before each (as in BigVGAN)."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]):
        super().__init__()

        def conv(dilation: int) -> WeightNormConv:
            return WeightNormConv(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)

        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        for act1, conv1, act2, conv2 in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            y = clear(conv1(act1(x)), padding)
            x = x + clear(conv2(act2(y)), padding)
        return x
