"""Attention of a decode step as one Triton kernel: each sequence's one new token attends to all that is cached of it.

For T3 every query head has keys and values of its own, so nothing can be shared between heads: the kernel reads each
key and value once and multiplies as it reads. Kernels that use matrix units work on tiles of 64 queries, of which one
is real here.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from chatterbox_vllm.t3.shared_kernel import NOTHING, PARTS, TILE, SharedPlaces, attend_shared


# What differs from batch to batch is no constant, so that the kernel is compiled once.
@triton.jit(do_not_specialize=["table_stride"])
def _decode(
    query, cache, table, lengths, out, tokens, shared, state, scale, table_stride,
    query_stride, out_stride, block_stride, head_stride, place_stride, part_stride, state_stride,
    BLOCK_SIZE: tl.constexpr, WIDTH: tl.constexpr, PLACES: tl.constexpr, STAGES: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, BESIDE: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    row = tl.program_id(1)
    length = tl.load(lengths + row)
    token = row
    if BESIDE:
        if length == 0:
            return
        token = tl.load(tokens + row)
    channels = tl.arange(0, WIDTH)
    places = tl.arange(0, PLACES)
    # Base 2 throughout: exp2 is what the hardware has.
    q = tl.load(query + token.to(tl.int64) * query_stride + head * WIDTH + channels).to(tl.float32)
    q = q * (scale * 1.4426950408889634)
    table += row.to(tl.int64) * table_stride
    cache += head.to(tl.int64) * head_stride
    best = tl.full((1,), NOTHING, tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((WIDTH,), tl.float32)
    first = 0
    if TILE > 0:
        first = tl.load(shared + row // TILE)
        known = tl.minimum(first, length)  # 0 for a row without a sequence
        own = state + row.to(tl.int64) * state_stride + head * (WIDTH + 2)
        one = tl.arange(0, 1)
        for _ in tl.static_range(PARTS):
            summed = tl.load(own + channels, mask=channels * 0 < known, other=0.0)
            highest = tl.load(own + WIDTH + one, mask=one < known, other=NOTHING)
            weight = tl.load(own + WIDTH + 1 + one, mask=one < known, other=0.0)
            higher = tl.maximum(best, highest)
            fading = tl.exp2(best - higher)
            gained = tl.exp2(highest - higher)
            total = total * fading + weight * gained
            acc = acc * fading + summed * gained
            best = higher
            own += part_stride
    for start in tl.range(first, length, PLACES, num_stages=STAGES):
        at = start + places
        there = at < length
        block = tl.load(table + at // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
        keys = cache + (block * block_stride + (at % BLOCK_SIZE) * place_stride)[:, None] + channels[None, :]
        k = tl.load(keys, mask=there[:, None], other=0.0)
        v = tl.load(keys + WIDTH, mask=there[:, None], other=0.0)
        scores = tl.where(there, tl.sum(k.to(tl.float32) * q[None, :], 1), float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 0))
        fading = tl.exp2(best - higher)
        p = tl.exp2(scores - higher)
        total = total * fading + tl.sum(p, 0)
        acc = acc * fading + tl.sum(v.to(tl.float32) * p[:, None], 0)
        best = higher
    # A row that fills a batch up to a graph's size has no sequence: its length is 0.
    acc = tl.where(total > 0, acc / total, 0.0)
    tl.store(out + token.to(tl.int64) * out_stride + head * WIDTH + channels, acc.to(out.dtype.element_ty))


def decode_attention(
    query: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    scale: float,
    shared: SharedPlaces | None = None,
    *,
    tokens: torch.Tensor | None = None,
    invariant: bool = False,
) -> None:
    """softmax(q k * scale) v over the cached places of each sequence, summed in float32, written to `out`.

    Args:
        query: [N, heads, D], D a power of two; the last two dimensions contiguous. Of other tokens, too, with `tokens`.
        cache: [blocks, heads, block size, 2 * D]: a place's key and after it its value; the last dimension contiguous.
        block_table: [N, most blocks] int32, the blocks of each sequence in order.
        lengths: [N] int32, cached places of each sequence, its new token's included; 0 for a row without a sequence.
        out: [N, heads, D], as `query`.
        shared: what the sequences begin with alike, as `find_shared` left it; read once for several of them.
        tokens: [N] int32, which row of `query` and `out` is a sequence's, where that is not the sequence's own number.
            Then nothing is written for a length of 0.
        invariant: whether a sequence's sums are the same to the last bit whatever the number of rows.
    """
    rows, (_, heads, width) = len(lengths), query.shape
    few = rows * heads <= 512 and not invariant
    # Without shared places the kernel reads none of these three, and without `tokens` none of them.
    strides: tuple[int, ...] = (0, 0)
    known, state = lengths, lengths
    beside = tokens is not None
    if shared is not None:
        attend_shared(query, cache, block_table, shared, scale)
        known, state, strides = shared.lengths, shared.state, shared.state.stride()[:2]
    _decode[(heads, rows)](
        query, cache, block_table, lengths, out, tokens if beside else lengths, known, state, scale,
        block_table.stride(0),
        query.stride(0), out.stride(0), cache.stride(0), cache.stride(1), cache.stride(2), *strides,
        cache.shape[2], width, 128 if few else 64, 2, 0 if shared is None else TILE, PARTS, beside,
        num_warps=4 if few else 2,
    )  # fmt: skip
