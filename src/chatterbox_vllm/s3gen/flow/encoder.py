"""The flow's encoder: speech tokens (25/s) to the mean of the mel (50 frames/s).

A conformer without convolution modules (Gulati et al. 2020, arXiv 2005.08100): a look-ahead convolution, blocks at
token rate, upsampling by two, blocks at frame rate. Attention carries relative positions as in Transformer-XL (Dai et
al. 2019, arXiv 1901.02860, appendix B), positions from T-1 down to -(T-1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import FlowConfig
from chatterbox_vllm.cpu.linear import Linear
from chatterbox_vllm.s3gen.layers import FrameConv, FusedLinear, causal_conv
from chatterbox_vllm.s3gen.ragged import clear, padding_mask, visible_keys

UPSAMPLING = 2  # mel frames for one speech token
_ALIGNED = 8
_BLOCK_EPS = 1e-12  # of the layer norms inside blocks, as published; all others have 1e-5


class FlowEncoder(nn.Module):
    """Speech tokens to the decoder's `mu`. Published under the prefix `flow.`."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.input_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = UpsampleConformer(config)
        self.encoder_proj = Linear(config.hidden_size, config.num_mels)

    def forward(self, tokens: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        """Mean of the mel, frames of padding undefined but finite.

        Args:
            tokens: [rows, tokens] int64, any valid id in the padding.
            padding: [rows, tokens] bool, True in the padding; None if there is none.

        Returns:
            [rows, 2 * tokens, mels] in the dtype of the weights.
        """
        return self.encoder_proj(self.encoder(self.input_embedding(tokens), padding))

    def of_lengths(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """`forward` for rows of so many tokens, [rows] int64 on the device: nothing is read on the host."""
        return self(tokens, padding_mask(lengths, tokens.device, tokens.shape[1]))


class UpsampleConformer(nn.Module):
    """[rows, tokens, hidden] to [rows, 2 * tokens, hidden]. Published under `flow.encoder.`."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        self.embed = InputLayer(config.hidden_size)
        self.pre_lookahead_layer = LookAhead(config.hidden_size, config.lookahead)
        self.encoders = nn.ModuleList(Block(config) for _ in range(config.encoder_blocks))
        self.up_layer = Upsample(config.hidden_size)
        self.up_embed = InputLayer(config.hidden_size)
        self.up_encoders = nn.ModuleList(Block(config) for _ in range(config.upsampled_blocks))
        self.after_norm = nn.LayerNorm(config.hidden_size)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        # Only the look-ahead and the attention see what is right of a frame.
        x = self.embed(x)
        x = self.pre_lookahead_layer(clear(x, None if padding is None else padding[..., None]))
        x = _run(self.encoders, x, padding)
        x = self.up_embed(self.up_layer(x))
        x = _run(self.up_encoders, x, None if padding is None else padding.repeat_interleave(UPSAMPLING, dim=1))
        return self.after_norm(x)


def _run(blocks: nn.ModuleList, x: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    # Half-precision matrix products are slow where a dimension is odd.
    spare = 0 if x.dtype == torch.float32 else (1 - 2 * x.shape[1]) % _ALIGNED
    positions = relative_positions(x.shape[1], x.shape[2], x.device, spare).to(x.dtype)
    keys = visible_keys(padding)
    for block in blocks:
        x = block(x, positions, keys)
    return x


def relative_positions(length: int, size: int, device: torch.device, spare: int = 0) -> torch.Tensor:
    """Sinusoids of the distances query - key from `length - 1` to `1 - length`: [2 * length - 1, size] float32.

    `spare` more follow, which no pair has.
    """
    distance = torch.arange(length - 1, -length - spare, -1, device=device, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, size, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / size))
    angle = distance[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class InputLayer(nn.Module):
    """Linear and layer norm, scaled by sqrt(hidden) as embeddings are before relative positions."""

    def __init__(self, size: int):
        super().__init__()
        self.out = nn.Sequential(Linear(size, size), nn.LayerNorm(size))
        self.scale = math.sqrt(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x) * self.scale


class LookAhead(nn.Module):
    """Residual pair of convolutions; the first sees `lookahead` tokens to the right."""

    def __init__(self, size: int, lookahead: int):
        super().__init__()
        self.conv1 = FrameConv(size, size, lookahead + 1, after=lookahead)
        self.conv2 = causal_conv(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(x)))


class Upsample(nn.Module):
    """Every token twice, then a causal convolution."""

    def __init__(self, size: int):
        super().__init__()
        self.conv = causal_conv(size, size, 2 * UPSAMPLING + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.repeat_interleave(UPSAMPLING, dim=1))


class Block(nn.Module):
    """Pre-norm attention with relative positions, then a SiLU feed-forward."""

    def __init__(self, config: FlowConfig):
        super().__init__()
        size = config.hidden_size
        self.norm_mha = nn.LayerNorm(size, eps=_BLOCK_EPS)
        self.self_attn = RelativeAttention(size, config.encoder_heads)
        self.norm_ff = nn.LayerNorm(size, eps=_BLOCK_EPS)
        self.feed_forward = FeedForward(size, config.encoder_ff_size)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, keys)
        return x + self.feed_forward(self.norm_ff(x))


class FeedForward(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, size: int, inner: int):
        super().__init__()
        self.w_1 = Linear(size, inner)
        self.w_2 = Linear(inner, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class RelativeAttention(nn.Module):
    """Multi-head attention with score ((q + u) k + (q + v) p[i - j]) / sqrt(d), p the projected positions."""

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, size // heads
        self.qkv = FusedLinear(size, size, ("linear_q", "linear_k", "linear_v"), bias=True)
        self.linear_pos = Linear(size, size, bias=False)
        self.linear_out = Linear(size, size)
        self.pos_bias_u = nn.Parameter(torch.empty(heads, self.head_dim))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, self.head_dim))

    def forward(self, x: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        rows, length, _ = x.shape
        qkv = self.qkv(x).view(rows, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        p = self.linear_pos(positions).view(-1, self.heads, self.head_dim).permute(1, 2, 0)
        by_distance = ((q + self.pos_bias_v[:, None]) * self.head_dim**-0.5) @ p
        # A copy: on CUDA, half-precision attention fails (misaligned address) on a view with an odd offset.
        bias = by_key(by_distance)
        bias = bias.contiguous() if keys is None else torch.where(keys, bias, -math.inf)
        out = F.scaled_dot_product_attention(q + self.pos_bias_u[:, None], k, v, attn_mask=bias)
        return self.linear_out(out.transpose(1, 2).flatten(2))


def by_key(by_distance: torch.Tensor) -> torch.Tensor:
    """Scores by distance [rows, heads, T, 2T - 1 or more] seen by key [rows, heads, T, T]: element (i, j) is i - j's.

    A view: going one query down moves one distance to the left, which is a stride one less than the distances.
    """
    rows, heads, length, distances = by_distance.shape
    across = by_distance.contiguous().view(rows, heads, length * distances)
    row_stride, head_stride, _ = across.stride()
    return across.as_strided(
        (rows, heads, length, length), (row_stride, head_stride, distances - 1, 1), across.storage_offset() + length - 1
    )
