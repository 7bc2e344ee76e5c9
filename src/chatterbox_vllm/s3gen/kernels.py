"""Triton kernels over packed frames ([frames, channels], rows end to end: see `packing`), for half precision on CUDA.

Beside each stands the same in plain torch (`*_reference`), which says what it computes and is what tests compare it to.
Sums, norms and activations are float32 inside; inputs and outputs have the tensors' dtype. Every kernel is one launch,
allocates its results with torch, never waits for the device, and so can be recorded in a CUDA graph.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from chatterbox_vllm.quantization.modules import QuantizedLinear
from chatterbox_vllm.s3gen.packing import QUERIES, PackedLayout

NORM_EPS = 1e-5
_LOG2_E = 1.4426950408889634
_KEYS = 64  # of an attention tile
_NORM_ROWS = 8


@triton.jit
def _attention(
    qkv, out, tiles, scale, HEADS: tl.constexpr, SIZE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):
    # One head of one tile of queries, softmax in base 2 over the row's keys, a block of keys at a time.
    head = tl.program_id(0)
    tile = tiles + tl.program_id(1) * 3
    start = tl.load(tile).to(tl.int64)
    length = tl.load(tile + 1)
    query = tl.load(tile + 2) + tl.arange(0, QUERIES)
    if length == 0:
        return
    WIDTH: tl.constexpr = 3 * HEADS * SIZE
    channel = tl.arange(0, SIZE)
    key = tl.arange(0, KEYS)
    base = qkv + start * WIDTH + head * SIZE
    q = tl.load(base + query[:, None] * WIDTH + channel[None, :], mask=query[:, None] < length, other=0.0)
    k_at = base + HEADS * SIZE + key[None, :] * WIDTH + channel[:, None]
    v_at = base + 2 * HEADS * SIZE + key[:, None] * WIDTH + channel[None, :]
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, SIZE], tl.float32)
    whole = (length // KEYS) * KEYS
    for _ in range(0, whole, KEYS):
        scores = tl.dot(q, tl.load(k_at))
        new = tl.maximum(largest, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_at)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
        largest = new
        k_at += KEYS * WIDTH
        v_at += KEYS * WIDTH
    if whole < length:
        there = whole + key < length
        scores = tl.dot(q, tl.load(k_at, mask=there[None, :], other=0.0))
        scores = tl.where(there[None, :], scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - new[:, None])
        shrink = tl.exp2(largest - new)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(v_at, mask=there[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
    acc = acc / total[:, None]
    at = out + (start + query)[:, None] * (HEADS * SIZE) + head * SIZE + channel[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=query[:, None] < length)


def attention(qkv: torch.Tensor, tiles: torch.Tensor, heads: int) -> torch.Tensor:
    """Every row's self-attention, no key outside the row: [frames, 3 * heads * size] to [frames, heads * size].

    Args:
        qkv: queries, keys and values side by side, heads inside each; `size` a power of two from 16.
        tiles: `PackedLayout.tiles`; unused frames of the result are undefined.
    """
    size = qkv.shape[1] // (3 * heads)
    out = torch.empty(qkv.shape[0], heads * size, dtype=qkv.dtype, device=qkv.device)
    _attention[(heads, len(tiles))](
        qkv, out, tiles, size**-0.5 * _LOG2_E, heads, size, QUERIES, _KEYS, num_warps=4, num_stages=3
    )
    return out


def attention_reference(qkv: torch.Tensor, packing: PackedLayout, heads: int) -> torch.Tensor:
    """`attention` a row at a time."""
    size = qkv.shape[1] // (3 * heads)
    out = qkv.new_zeros(qkv.shape[0], heads * size)
    rows = {(start, length) for start, length, _ in packing.tiles.tolist() if length}
    for start, length in rows:
        q, k, v = qkv[start : start + length].unflatten(1, (3, heads, size)).permute(1, 2, 0, 3)
        out[start : start + length] = F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
    return out


@triton.jit
def _normed(x, gain, bias, EPS: tl.constexpr, WIDTH: tl.constexpr):
    x = x - (tl.sum(x, 1) / WIDTH)[:, None]
    return x * tl.rsqrt(tl.sum(x * x, 1) / WIDTH + EPS)[:, None] * gain[None, :] + bias[None, :]


@triton.jit(do_not_specialize=["frames"])
def _add_norm(
    x, y, total, normed, gain, bias, frames,
    NORM: tl.constexpr, EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    frame = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = tl.arange(0, WIDTH)
    at = frame * WIDTH + channel[None, :]
    mask = frame < frames
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) + tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(total + at, value.to(total.dtype.element_ty), mask=mask)
    if NORM:
        value = _normed(
            value, tl.load(gain + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32), EPS, WIDTH
        )
        tl.store(normed + at, value.to(normed.dtype.element_ty), mask=mask)


def add_norm(x: torch.Tensor, y: torch.Tensor, norm: torch.nn.LayerNorm | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of two [frames, channels], and its layer norm (the sum again without a norm)."""
    frames, width = x.shape
    total = torch.empty_like(x)
    normed = total if norm is None else torch.empty_like(x)
    gain, bias = (x, x) if norm is None else (norm.weight, norm.bias)
    _add_norm[(triton.cdiv(frames, _NORM_ROWS),)](
        x, y, total, normed, gain, bias, frames, norm is not None, NORM_EPS, width, _NORM_ROWS, num_warps=4
    )
    return total, normed


def add_norm_reference(
    x: torch.Tensor, y: torch.Tensor, norm: torch.nn.LayerNorm | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_norm` in plain torch."""
    total = x + y
    return total, total if norm is None else norm(total)


@triton.jit(do_not_specialize=["frames"])
def _norm_mish(
    x, time, residual, out, normed, gain, bias, next_gain, next_bias, frames,
    TIME: tl.constexpr, RESIDUAL: tl.constexpr, NEXT: tl.constexpr,
    EPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    frame = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = tl.arange(0, WIDTH)
    at = frame * WIDTH + channel[None, :]
    mask = frame < frames
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    value = _normed(value, tl.load(gain + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32), EPS, WIDTH)
    e = tl.exp(tl.minimum(value, 20.0))
    n = e * (e + 2.0)
    value = tl.where(value > 20.0, value, value * n / (n + 2.0))  # x tanh(log(1 + e^x))
    if TIME:
        value += tl.load(time + channel).to(tl.float32)[None, :]
    if RESIDUAL:
        value += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
    if NEXT:
        g = tl.load(next_gain + channel).to(tl.float32)
        value = _normed(value, g, tl.load(next_bias + channel).to(tl.float32), EPS, WIDTH)
        tl.store(normed + at, value.to(normed.dtype.element_ty), mask=mask)


def norm_mish(
    x: torch.Tensor,
    norm: torch.nn.LayerNorm,
    time: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    next_norm: torch.nn.LayerNorm | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """mish(norm(x)) + time + residual of [frames, channels], and its `next_norm` (itself without one).

    Args:
        time: [channels], added to every frame.
        residual: [frames, channels].
    """
    frames, width = x.shape
    out = torch.empty_like(x)
    normed = out if next_norm is None else torch.empty_like(x)
    after = norm if next_norm is None else next_norm
    _norm_mish[(triton.cdiv(frames, _NORM_ROWS),)](
        x, x if time is None else time, x if residual is None else residual, out, normed,
        norm.weight, norm.bias, after.weight, after.bias, frames,
        time is not None, residual is not None, next_norm is not None, NORM_EPS, width, _NORM_ROWS, num_warps=4,
    )  # fmt: skip
    return out, normed


def norm_mish_reference(
    x: torch.Tensor,
    norm: torch.nn.LayerNorm,
    time: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    next_norm: torch.nn.LayerNorm | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`norm_mish` in plain torch."""
    out = F.mish(norm(x))
    for more in (time, residual):
        out = out if more is None else out + more
    return out, out if next_norm is None else next_norm(out)


@triton.jit
def _snaked(x, alpha):
    # sin^2 has the period pi: reduced to half a turn around zero, a polynomial of degree 11 is exact to 1e-7.
    turns = tl.floor(x * alpha * 0.3183098861837907 + 0.5)
    r = (x * alpha - turns * 3.140625) - turns * 9.67653589793e-4
    s = r * r
    wave = -2.3889859e-08 * s + 2.7525562e-06
    wave = wave * s - 1.9840874e-04
    wave = wave * s + 8.3333310e-03
    wave = wave * s - 1.6666667e-01
    wave = r + r * s * wave
    return x + wave * wave / (alpha + 1e-9)


# What differs from layer to layer is no constant, so that few variants are compiled.
@triton.jit(do_not_specialize=["frames", "taps", "dilation", "before"])
def _conv(
    x, weight, bias, position, remaining, residual, alpha, out, snaked, frames, taps, dilation, before,
    IN: tl.constexpr, OUT: tl.constexpr, RESIDUAL: tl.constexpr, SNAKE: tl.constexpr, PLAIN: tl.constexpr,
    FRAMES: tl.constexpr, CHANNELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    # One matrix product over taps x channels; a tap outside the frame's row reads zero.
    frame = tl.program_id(1) * FRAMES + tl.arange(0, FRAMES)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inner = tl.arange(0, DEPTH)
    there = frame < frames
    place = tl.load(position + frame, mask=there, other=0)
    ahead = tl.load(remaining + frame, mask=there, other=-1)
    acc = tl.zeros([FRAMES, CHANNELS], tl.float32)
    for i in range(0, taps * IN, DEPTH):
        tap = i // IN
        shift = tap * dilation - before
        seen = tl.load(
            x + (frame + shift)[:, None] * IN + (i - tap * IN + inner)[None, :],
            mask=((place + shift >= 0) & (shift <= ahead))[:, None],
            other=0.0,
        )
        w = tl.load(weight + channel[None, :] * (taps * IN) + (i + inner)[:, None])
        acc = tl.dot(seen, w, acc)
    acc += tl.load(bias + channel).to(tl.float32)[None, :]
    at = frame.to(tl.int64)[:, None] * OUT + channel[None, :]
    if RESIDUAL:
        acc += tl.load(residual + at, mask=there[:, None], other=0.0).to(tl.float32)
    if PLAIN:
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=there[:, None])
    if SNAKE:
        acc = _snaked(acc, tl.load(alpha + channel).to(tl.float32)[None, :])
        tl.store(snaked + at, acc.to(snaked.dtype.element_ty), mask=there[:, None])


@dataclass(frozen=True)
class PackedConv:
    """A convolution as the kernels read it; see `shared_conv` for one of a module.

    Attributes:
        weight: [out, taps * in], taps outside; `in` and `out` multiples of 16.
        bias: [out].
        dilation: frames from one tap to the next.
        before: frames that the first tap is before the frame.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    dilation: int
    before: int


def packed_conv(weight: torch.Tensor, bias: torch.Tensor, dilation: int, before: int) -> PackedConv:
    """From a published weight [out, in, taps]; a copy."""
    return PackedConv(weight.transpose(1, 2).flatten(1).contiguous(), bias, dilation, before)


def shared_conv(module: torch.nn.Conv1d, before: int) -> PackedConv:
    """`packed_conv` of a module, whose weight becomes a view of the packed one: kept once, not twice."""
    by = packed_conv(module.weight, module.bias, module.dilation[0], before)
    published = by.weight.unflatten(1, (module.kernel_size[0], -1)).transpose(1, 2)
    module.weight = torch.nn.Parameter(published, requires_grad=False)
    return by


def conv(
    x: torch.Tensor,
    by: PackedConv,
    position: torch.Tensor,
    remaining: torch.Tensor,
    residual: torch.Tensor | None = None,
    snake: torch.Tensor | None = None,
    plain: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A convolution inside rows, plus `residual`: [frames, in] to [frames, out], and its Snake.

    Args:
        position, remaining: [frames] int32, frames of its row before and after a frame.
        residual: [frames, out].
        snake: [out], alpha of the Snake.
        plain: whether the result before Snake is wanted; without, Snake's stands for both.
        dtype: of the results, that of `x` by default.

    Returns:
        The result and its Snake (itself without one).
    """
    frames, inputs = x.shape
    outputs = len(by.weight)
    out = torch.empty(frames, outputs, dtype=dtype or x.dtype, device=x.device)
    snaked = torch.empty_like(out) if snake is not None and plain else out
    channels = min(outputs & -outputs, 128)  # a power of two
    tile = 128 if x.is_cuda else 16  # as Triton's interpreter goes through tiles one by one
    depth = 64 if inputs % 64 == 0 else 16
    _conv[(outputs // channels, triton.cdiv(frames, tile))](
        x, by.weight, by.bias, position, remaining, x if residual is None else residual, x if snake is None else snake,
        out, snaked, frames, by.weight.shape[1] // inputs, by.dilation, by.before,
        inputs, outputs, residual is not None, snake is not None, plain, tile, channels, depth,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return out, snaked


def conv_reference(
    x: torch.Tensor,
    by: PackedConv,
    position: torch.Tensor,
    remaining: torch.Tensor,
    residual: torch.Tensor | None = None,
    snake: torch.Tensor | None = None,
    plain: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`conv` in plain torch."""
    seen = []
    for tap in range(by.weight.shape[1] // x.shape[1]):
        shift = tap * by.dilation - by.before
        inside = (position + shift >= 0) & (remaining >= shift)
        seen.append(torch.where(inside[:, None], x.roll(-shift, 0), 0))
    out = F.linear(torch.cat(seen, dim=1), by.weight, by.bias)
    out = (out if residual is None else out + residual).to(dtype or x.dtype)
    snaked = out if snake is None else snake_reference(out, snake)
    return (out if plain else snaked), snaked


@triton.jit(do_not_specialize=["size"])
def _snake(x, alpha, out, size, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(alpha + at % WIDTH).to(tl.float32)
    value = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(out + at, _snaked(value, a).to(out.dtype.element_ty), mask=at < size)


def snake(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """x + sin(alpha x)^2 / alpha of [frames, channels], alpha [channels]."""
    out = torch.empty_like(x)
    _snake[(triton.cdiv(x.numel(), 2048),)](x, alpha, out, x.numel(), x.shape[1], 2048, num_warps=8)
    return out


def snake_reference(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """`snake` in plain torch."""
    return x + torch.sin(x * alpha).square() / (alpha + 1e-9)


def gelu_linear(x: torch.Tensor, linear: torch.nn.Linear | QuantizedLinear) -> torch.Tensor:
    """GELU(linear(x)) in one launch of cuBLASLt, [frames, in] to [frames, out]; quantized weights take more.

    Its GELU is the approximation by tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415), at most 5e-4 from the exact
    one: a tenth of what half precision does to a mel.
    """
    weight = linear.dequantized(x.dtype) if isinstance(linear, QuantizedLinear) else linear.weight
    return torch._addmm_activation(linear.bias, x, weight.t(), use_gelu=True)


def gelu_linear_reference(x: torch.Tensor, linear: torch.nn.Linear | QuantizedLinear) -> torch.Tensor:
    """`gelu_linear` in plain torch."""
    return F.gelu(linear(x), approximate="tanh")
