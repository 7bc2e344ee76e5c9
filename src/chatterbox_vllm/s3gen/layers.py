"""Layers shared by the flow's networks, on frames in the last dimension but one ([rows, frames, channels])."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.cpu.linear import Linear, linear


class FrameConv(nn.Conv1d):
    """A 1-d convolution over [rows, frames, channels], as one matrix product over windows of frames.

    The weight keeps the published shape [out, in, taps].

    Args:
        before, after: zero frames put before and after a row; `before + after = taps - 1` keeps the length.
    """

    def __init__(self, in_channels: int, out_channels: int, taps: int, before: int = 0, after: int = 0):
        super().__init__(in_channels, out_channels, taps)
        self.edges = (0, 0, before, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taps = self.kernel_size[0]
        if taps > 1:
            # The window's taps come last, as in the weight, so the weight is used as it lies.
            x = F.pad(x, self.edges).unfold(1, taps, 1).flatten(2)
        return linear(x, self.weight.flatten(1), self.bias)


def causal_conv(in_channels: int, out_channels: int, taps: int = 3) -> FrameConv:
    """A convolution that sees a frame and the `taps - 1` before it."""
    return FrameConv(in_channels, out_channels, taps, before=taps - 1)


class FusedLinear(Linear):
    """Linear layers of one input as one matrix product, their outputs side by side.

    Args:
        parts: the published names of the layers, which lie beside this one's.
        features: outputs of each of them.
    """

    def __init__(self, in_features: int, features: int, parts: Sequence[str], bias: bool):
        super().__init__(in_features, features * len(parts), bias=bias)
        names = ("weight", "bias") if bias else ("weight",)
        self.fused = {name: tuple(f"../{part}.{name}" for part in parts) for name in names}
