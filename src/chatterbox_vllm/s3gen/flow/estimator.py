"""The flow's estimator: the velocity of the mel at one moment of the flow (conditional flow matching).

A U-shaped net of one level (after Matcha-TTS, Mehta et al. 2024, arXiv 2309.03199, made causal): stages of one
residual convolution block and transformer blocks, all at frame rate, with one skip from the first stage to the last.
Activations are [rows, frames, channels]. All convolutions look to the left only, so padding on the right reaches a
frame through attention keys alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import FlowConfig
from chatterbox_vllm.cpu.linear import Linear
from chatterbox_vllm.s3gen.layers import FrameConv, FusedLinear, causal_conv
from chatterbox_vllm.s3gen.ragged import clear, visible_keys

_TIME_SCALE = 1000.0  # the flow's time runs from 0 to 1, its sinusoids expect diffusion steps
_FF_FACTOR = 4
_TIME_FACTOR = 4


class Estimator(nn.Module):
    """Published under the prefix `flow.decoder.estimator.`."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        width = config.estimator_channels
        self.in_channels = 4 * config.num_mels
        self.time_mlp = TimeEmbedding(self.in_channels, _TIME_FACTOR * width)
        if config.meanflow:
            self.time_embed_mixer = nn.Linear(2 * _TIME_FACTOR * width, _TIME_FACTOR * width, bias=False)
        self.down_blocks = nn.ModuleList([_stage(config, self.in_channels, after=causal_conv(width, width))])
        self.mid_blocks = nn.ModuleList(_stage(config, width) for _ in range(config.estimator_mid_stages))
        self.up_blocks = nn.ModuleList([_stage(config, 2 * width, after=causal_conv(width, width))])
        self.final_block = ConvBlock(width, width)
        self.final_proj = FrameConv(width, config.num_mels, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations; the time path is float32 always."""
        return self.final_proj.weight.dtype

    def cast(self, dtype: torch.dtype) -> None:
        """Hold all weights but those of the time path in `dtype`."""
        kept = {id(p) for module in self._time_path() for p in module.parameters()}
        for parameter in self.parameters():
            if id(parameter) not in kept:
                parameter.data = parameter.data.to(dtype)

    def time_table(self, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """All that depends on the time alone, for many moments at once.

        Args:
            start: [n] float32, moments of the flow, 0 (noise) to 1 (mel).
            end: [n] float32, where each step ends; used by a meanflow estimator only.

        Returns:
            [n, stages, channels] in the estimator's dtype, computed in float32.
        """
        embedding = self.time_mlp(start)
        if hasattr(self, "time_embed_mixer"):
            embedding = self.time_embed_mixer(torch.cat([embedding, self.time_mlp(end)], dim=-1))
        embedding = F.mish(embedding)
        return torch.stack([resnet.time(embedding) for resnet in self._resnets()], dim=1).to(self.dtype)

    def forward(self, x: torch.Tensor, time: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        """Velocity [rows, frames, mels], zero in the padding.

        Args:
            x: [rows, frames, 4 * mels]: state, encoder mean, speaker and prompt mel side by side.
            time: [rows or 1, stages, channels], from `time_table`.
            padding: [rows, frames] bool, True in the padding; None if there is none.
        """
        keys = visible_keys(padding)
        times = iter(time[:, :, None].unbind(1))
        for stage in self.down_blocks:
            x = skip = _run(stage, x, next(times), keys)
            x = stage[2](x)
        for stage in self.mid_blocks:
            x = _run(stage, x, next(times), keys)
        for stage in self.up_blocks:
            x = stage[2](_run(stage, torch.cat([x, skip], dim=-1), next(times), keys))
        x = self.final_proj(self.final_block(x))
        return clear(x, None if padding is None else padding[..., None])

    def _resnets(self) -> list[Resnet]:
        return [stage[0] for blocks in (self.down_blocks, self.mid_blocks, self.up_blocks) for stage in blocks]

    def _time_path(self) -> list[nn.Module]:
        mixer = [self.time_embed_mixer] if hasattr(self, "time_embed_mixer") else []
        return [self.time_mlp, *mixer, *(resnet.mlp for resnet in self._resnets())]


def _stage(config: FlowConfig, in_channels: int, after: nn.Module | None = None) -> nn.ModuleList:
    width = config.estimator_channels
    blocks = nn.ModuleList(
        TransformerBlock(width, config.estimator_heads, config.estimator_head_dim)
        for _ in range(config.estimator_transformer_blocks)
    )
    resnet = Resnet(in_channels, width, _TIME_FACTOR * width)
    return nn.ModuleList([resnet, blocks] + ([] if after is None else [after]))


def _run(stage: nn.ModuleList, x: torch.Tensor, time: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
    x = stage[0](x, time)
    for block in stage[1]:
        x = block(x, keys)
    return x


class TimeEmbedding(nn.Module):
    """Moments [n] to embeddings [n, size]: sinusoids, then linear, SiLU, linear."""

    def __init__(self, sinusoids: int, size: int):
        super().__init__()
        self.linear_1 = nn.Linear(sinusoids, size)
        self.linear_2 = nn.Linear(size, size)

    def forward(self, moment: torch.Tensor) -> torch.Tensor:
        half = self.linear_1.in_features // 2
        index = torch.arange(half, device=moment.device, dtype=torch.float32)
        angle = _TIME_SCALE * moment[:, None] * torch.exp(index * (-math.log(10_000.0) / (half - 1)))
        return self.linear_2(F.silu(self.linear_1(torch.cat([angle.sin(), angle.cos()], dim=-1))))


class ConvBlock(nn.Module):
    """Causal convolution, layer norm, Mish."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.block = nn.ModuleDict({"0": causal_conv(in_channels, channels), "2": nn.LayerNorm(channels)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.mish(self.block["2"](self.block["0"](x)))


class Resnet(nn.Module):
    """Two convolution blocks with the time added between them, around a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, time_size: int):
        super().__init__()
        self.mlp = nn.ModuleDict({"1": nn.Linear(time_size, channels)})
        self.block1 = ConvBlock(in_channels, channels)
        self.block2 = ConvBlock(channels, channels)
        self.res_conv = FrameConv(in_channels, channels, 1)

    def time(self, embedding: torch.Tensor) -> torch.Tensor:
        """What a time embedding (already through Mish) adds to every frame: [n, channels]."""
        return self.mlp["1"](embedding)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.block2(self.block1(x) + time) + self.res_conv(x)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention over the whole row, then an exact-GELU feed-forward."""

    def __init__(self, channels: int, heads: int, head_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, head_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, _FF_FACTOR * channels)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        x = x + self.attn1(self.norm1(x), keys)
        return x + self.ff(self.norm3(x))


class Attention(nn.Module):
    """Multi-head self-attention; the projections of queries, keys and values are one matrix without bias."""

    def __init__(self, channels: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = FusedLinear(channels, heads * head_dim, ("to_q", "to_k", "to_v"), bias=False)
        self.to_out = nn.ModuleDict({"0": Linear(heads * head_dim, channels)})

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.to_out["0"](out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU (exact), linear."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.net = nn.ModuleDict({"0": nn.ModuleDict({"proj": Linear(channels, inner)}), "2": Linear(inner, channels)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net["2"](F.gelu(self.net["0"]["proj"](x)))
