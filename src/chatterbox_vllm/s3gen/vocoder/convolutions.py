"""The vocoder's convolutions, over [rows, channels, frames].

On a CPU a frame's channels lie side by side in memory, and a convolution is one in two dimensions, one row high: oneDNN
then reads and writes activations as they lie. With a channel's frames side by side, which is all that PyTorch's
convolution in one dimension gives, it reorders them before and after. On two cores with AVX-512, [64, 24721] with three
taps takes 1.2 ms and 5.9 ms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def by_frame(x: torch.Tensor) -> torch.Tensor:
    """`x` [rows, channels, frames] as the convolutions here want it to lie: on a CPU, a frame's channels together."""
    return x.transpose(1, 2).contiguous().transpose(1, 2) if x.device.type == "cpu" else x


class Conv(nn.Conv1d):
    """[rows, in, frames] to [rows, out, frames]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        padding, stride, dilation = (0, *self.padding), (1, *self.stride), (1, *self.dilation)
        return F.conv2d(x[:, :, None], self.weight[:, :, None], self.bias, stride, padding, dilation).squeeze(2)


class WeightNormConv(Conv):
    """A convolution that the published checkpoints store with weight normalisation; ours is plain."""

    weight_normed = True


class WeightNormTranspose(nn.ConvTranspose1d):
    """A transposed convolution that the published checkpoints store with weight normalisation; ours is plain."""

    weight_normed = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # its length is never asked for
        """[rows, in, frames] to [rows, out, stride * frames]."""
        if x.device.type != "cpu":
            return super().forward(x)
        weight, padding, stride = self.weight[:, :, None], (0, *self.padding), (1, *self.stride)
        return F.conv_transpose2d(x[:, :, None], weight, self.bias, stride, padding).squeeze(2)
