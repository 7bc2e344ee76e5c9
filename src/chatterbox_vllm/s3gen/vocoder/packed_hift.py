"""The vocoder's convolutions on packed frames with Triton kernels: `HiFT`'s weights and its function, half precision.

Activations are [frames, channels], rows end to end at every rate, so nothing is padded or cleared: a tap outside a row
reads zero. Snake and residuals ride on the convolutions. A transposed convolution is a convolution whose output
channels are the phases of its stride. Pitch, source and spectra are `HiFT`'s own, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from chatterbox_vllm.s3gen.kernels import PackedConv, conv, packed_conv, shared_conv, snake
from chatterbox_vllm.s3gen.packing import PackedRows
from chatterbox_vllm.s3gen.ragged import Lengths, at_rate
from chatterbox_vllm.s3gen.vocoder.convolutions import WeightNormTranspose
from chatterbox_vllm.s3gen.vocoder.hift import SLOPE, HiFT, ResBlock

_ALIGNED = 8  # channels; spectra are filled up to a multiple for the matrix products


class PackedHiFT:
    """Reads the weights of `hift` as they are now; make a new one after they were cast or moved.

    Convolutions that keep the length have their weights shared with `hift`; those of its edges are copies.
    """

    def __init__(self, hift: HiFT):
        self.hift = hift
        spectrum = hift.config.fft_size + 2
        self._spectrum = -(-spectrum // _ALIGNED) * _ALIGNED
        self._pre = _centred(hift.conv_pre)
        self._ups = [_phases(up) for up in hift.ups]
        # [out, in, taps] to [out, taps * in] with `in` filled up.
        missing = (0, 0, 0, self._spectrum - spectrum)
        self._downs = [F.pad(down.weight, missing).transpose(1, 2).flatten(1) for down in hift.source_downs]
        blocks = (*hift.source_resblocks, *hift.resblocks)
        self._convs = {id(c): _centred(c) for block in blocks for c in (*block.convs1, *block.convs2)}
        outputs = 1 << (spectrum - 1).bit_length()
        self._post = _centred(hift.conv_post, outputs)

    def __call__(
        self, mel: torch.Tensor, lengths: Sequence[int], phase: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """As `HiFT.forward`."""
        return self.decode(mel, lengths, self.hift.source(mel, lengths, phase, noise))

    def decode(self, mel: torch.Tensor, lengths: Lengths, source: torch.Tensor) -> torch.Tensor:
        """As `HiFT.decode`: waveforms [rows, samples] from `mel` [rows, mels, frames] and `source` [rows, samples]."""
        hift, config, dtype = self.hift, self.hift.config, self._pre.weight.dtype
        excitation, spectra = hift.excitation(source, lengths)
        at_spectra = PackedRows.of(spectra, mel.device, excitation.shape[-1])
        # A last frame of zeros, for windows to read outside a row.
        excitation = at_spectra.pack(excitation.transpose(1, 2)).to(dtype)
        excitation = F.pad(excitation, (0, self._spectrum - excitation.shape[1], 0, 1))

        rows = PackedRows.of(lengths, mel.device, mel.shape[-1])
        x = self._conv(self._pre, rows.pack(mel.transpose(1, 2)).to(dtype), rows)
        per_stage = len(config.resblock_kernels)
        rate, last = 1, len(self._ups) - 1
        for i, (up, factor) in enumerate(zip(self._ups, config.upsample_rates, strict=True)):
            rate *= factor
            x = self._conv(up, F.leaky_relu(x, SLOPE), rows).view(factor * len(x), -1)
            before = rows = PackedRows.of(at_rate(lengths, rate), mel.device, rate * mel.shape[-1])
            if i == last:
                rows = at_spectra
                # An STFT that is centred on its samples has one spectrum more than hops: the second, reflected.
                x = x[before.start[rows.row] + (rows.position.long() - 1).abs()]
            x = x + self._resblock(hift.source_resblocks[i], self._down(i, excitation, rows, at_spectra), rows)
            of_stage = range(i * per_stage, (i + 1) * per_stage)
            x = torch.stack([self._resblock(hift.resblocks[j], x, rows) for j in of_stage]).mean(0)

        x, _ = conv(F.leaky_relu(x), self._post, *rows.bounds, dtype=torch.float32)
        return hift.samples(rows.unpack(x[:, : config.fft_size + 2]).transpose(1, 2), spectra)

    def _conv(self, by: PackedConv, x: torch.Tensor, rows: PackedRows) -> torch.Tensor:
        return conv(x, by, *rows.bounds)[0]

    def _down(self, i: int, excitation: torch.Tensor, rows: PackedRows, at_spectra: PackedRows) -> torch.Tensor:
        """The excitation's spectra at the rate of stage `i`, as that many windows of them."""
        down = self.hift.source_downs[i]
        taps, step, edge = down.kernel_size[0], down.stride[0], down.padding[0]
        if taps == 1:
            return F.linear(excitation[:-1], self._downs[i], down.bias)
        seen = rows.position[:, None] * step - edge + torch.arange(taps, device=excitation.device)
        inside = (seen >= 0) & (seen < at_spectra.length[rows.row, None])
        seen = torch.where(inside, seen + at_spectra.start[rows.row, None], len(excitation) - 1)
        return F.linear(excitation[seen].flatten(1), self._downs[i], down.bias)

    def _resblock(self, block: ResBlock, x: torch.Tensor, rows: PackedRows) -> torch.Tensor:
        first, second = ([act.alpha for act in acts] for acts in (block.activations1, block.activations2))
        active = snake(x, first[0])
        for i, (conv1, conv2) in enumerate(zip(block.convs1, block.convs2, strict=True)):
            y, _ = conv(active, self._convs[id(conv1)], *rows.bounds, snake=second[i], plain=False)
            following = first[i + 1] if i + 1 < len(first) else None
            x, active = conv(y, self._convs[id(conv2)], *rows.bounds, residual=x, snake=following)
        return x


def _centred(module: torch.nn.Conv1d, outputs: int | None = None) -> PackedConv:
    """A convolution that keeps the length, its output channels filled up to `outputs`."""
    if outputs is None:
        return shared_conv(module, before=module.padding[0])
    missing = outputs - module.out_channels
    weight, bias = F.pad(module.weight, (0, 0, 0, 0, 0, missing)), F.pad(module.bias, (0, missing))
    return packed_conv(weight, bias, dilation=module.dilation[0], before=module.padding[0])


def _phases(up: WeightNormTranspose) -> PackedConv:
    """A transposed convolution as one from frames to [stride * out] channels, phase by phase.

    Output q * stride + j takes input q - d through the tap d * stride + j + padding.
    """
    rate, edge, taps = up.stride[0], int(up.padding[0]), up.kernel_size[0]
    first, last = -((rate - 1 + edge) // rate), (taps - 1 - edge) // rate
    weight = up.weight.new_zeros(rate, up.out_channels, up.in_channels, last - first + 1)
    for j in range(rate):
        for d in range(first, last + 1):
            tap = d * rate + j + edge
            if 0 <= tap < taps:
                weight[j, :, :, last - d] = up.weight[:, :, tap].T
    return packed_conv(weight.flatten(0, 1), up.bias.repeat(rate), dilation=1, before=last)
