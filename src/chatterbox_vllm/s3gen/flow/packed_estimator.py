"""The estimator on packed frames with Triton kernels: `Estimator`'s weights and its function, for half precision.

Against `Estimator.forward`: no padding is computed, no mask exists, norms, Mish and sums ride on the matrix products
beside them, and GELU is its tanh approximation. Everything here is launches only, so a CUDA graph can hold it.
"""

from __future__ import annotations

import torch
from torch import nn

from chatterbox_vllm.s3gen.flow.estimator import Estimator, TransformerBlock
from chatterbox_vllm.s3gen.kernels import add_norm, attention, conv, gelu_linear, norm_mish, shared_conv
from chatterbox_vllm.s3gen.layers import FrameConv

# Frames of its row before and after each frame: `position` and `remaining` of `PackedLayout`.
Bounds = tuple[torch.Tensor, torch.Tensor]


class PackedEstimator:
    """Reads the weights of `estimator` as they are now; make a new one after they were cast or moved.

    Convolution weights are put in the order that the kernels read; the modules' own become views of them.
    """

    def __init__(self, estimator: Estimator):
        self.estimator = estimator
        self._convs = {
            id(conv): shared_conv(conv, before=conv.kernel_size[0] - 1)
            for conv in estimator.modules()
            if isinstance(conv, FrameConv) and conv.kernel_size[0] > 1
        }

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, position: torch.Tensor, remaining: torch.Tensor, tiles: torch.Tensor
    ) -> torch.Tensor:
        """Velocity [frames, mels]; undefined in unused frames.

        Args:
            x: [frames, 4 * mels]: state, encoder mean, speaker and prompt mel side by side.
            time: [1, stages, channels], from `Estimator.time_table`.
            position, remaining, tiles: of the `PackedLayout` of all streams.
        """
        net = self.estimator
        bounds = (position, remaining)
        times = iter(time[0].unbind(0))
        for stage in net.down_blocks:
            x = skip = self._stage(stage, x, next(times), bounds, tiles)
            x = self._conv(stage[2], x, bounds)
        for stage in net.mid_blocks:
            x = self._stage(stage, x, next(times), bounds, tiles)
        for stage in net.up_blocks:
            x = self._stage(stage, torch.cat([x, skip], dim=-1), next(times), bounds, tiles)
            x = self._conv(stage[2], x, bounds)
        last = net.final_block.block
        return net.final_proj(norm_mish(self._conv(last["0"], x, bounds), last["2"])[0])

    def _stage(
        self, stage: nn.ModuleList, x: torch.Tensor, time: torch.Tensor, bounds: Bounds, tiles: torch.Tensor
    ) -> torch.Tensor:
        resnet, blocks = stage[0], list(stage[1])
        first, second = resnet.block1.block, resnet.block2.block
        y, _ = norm_mish(self._conv(first["0"], x, bounds), first["2"], time=time)
        y = self._conv(second["0"], y, bounds)
        x, normed = norm_mish(y, second["2"], residual=resnet.res_conv(x), next_norm=blocks[0].norm1)
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            x, normed = _block(block, x, normed, tiles, None if following is None else following.norm1)
        return x

    def _conv(self, conv_module: FrameConv, x: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        return conv(x, self._convs[id(conv_module)], *bounds)[0]


def _block(
    block: TransformerBlock, x: torch.Tensor, normed: torch.Tensor, tiles: torch.Tensor, next_norm: nn.LayerNorm | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A transformer block on `x` [frames, channels], its first norm already taken; the result and its next norm."""
    attn, net = block.attn1, block.ff.net
    heads = attention(attn.qkv(normed), tiles, attn.heads)
    x, normed = add_norm(x, attn.to_out["0"](heads), block.norm3)
    return add_norm(x, net["2"](gelu_linear(normed, net["0"]["proj"])), next_norm)
