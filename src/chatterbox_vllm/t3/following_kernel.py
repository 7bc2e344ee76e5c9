"""Attention to the text, the rules of `alignment.follow` and the end's logit in one Triton kernel: a program a request.

In plain torch it is some seventy launches a step, for a few thousand multiplications.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from chatterbox_vllm.t3 import alignment

_TILE, _WARPS = 128, 8
_BACK, _AHEAD = tl.constexpr(alignment.BACK), tl.constexpr(alignment.AHEAD)
_LAST, _SHORT_TEXT = tl.constexpr(alignment.LAST), tl.constexpr(alignment.SHORT_TEXT)
_LONG_TAIL, _REPETITION = tl.constexpr(alignment.LONG_TAIL), tl.constexpr(alignment.REPETITION)
_HELD, _FORCED = tl.constexpr(alignment.HELD), tl.constexpr(alignment.FORCED)


@triton.jit
def _scores(
    queries, caches, head, table, at, there, scale, block_stride, place_stride,
    BLOCK_SIZE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    # Of a head's query with its keys at these positions, in base 2; -inf where there are none.
    query = tl.load(queries + head * WIDTH).to(tl.float32) * scale
    cache = tl.multiple_of(tl.load(caches + head).to(tl.pointer_type(queries.dtype.element_ty)), 16)
    block = tl.load(table + at // BLOCK_SIZE, mask=there, other=0).to(tl.int64)
    keys = cache + (block * block_stride + (at % BLOCK_SIZE) * place_stride)[:, None] + tl.arange(0, WIDTH)[None, :]
    k = tl.load(keys, mask=there[:, None], other=0.0).to(tl.float32)
    return tl.where(there, tl.sum(k * query[None, :], 1), float("-inf"))


@triton.jit
def _of(head, heads, values):
    return tl.sum(tl.where(heads == head, values, 0.0), 0)


# What differs from batch to batch is no constant, so that the kernel is compiled once.
@triton.jit(do_not_specialize=["table_stride"])
def _follow(
    queries, caches, requests, begins, lengths, table, states, logits, scale, text_start, end,
    table_stride, block_stride, place_stride, vocabulary,
    STREAMS: tl.constexpr, HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
    STATE: tl.constexpr, ROOM: tl.constexpr,
):  # fmt: skip
    requests += tl.program_id(0) * 5
    row, slot = tl.load(requests), tl.load(requests + 1)
    prompt_rows, size, held_for = tl.load(requests + 2), tl.load(requests + 3), tl.load(requests + 4)
    length = tl.load(lengths + row).to(tl.int64)
    step = length - prompt_rows
    newest = tl.load(begins + row + 1).to(tl.int64) - 1
    table += row * table_stride
    queries += newest * (HEADS * WIDTH) + tl.arange(0, WIDTH)
    columns = tl.arange(0, TILE)
    # Each head's sum over all positions first, and then the share of the text in it.
    heads = tl.arange(0, ROOM)
    bests, totals = tl.full((ROOM,), float("-inf"), tl.float32), tl.zeros((ROOM,), tl.float32)
    for start in range(0, length, TILE):
        at = start + columns
        for head in tl.static_range(HEADS):
            scores = _scores(
                queries, caches, head, table, at, at < length, scale, block_stride, place_stride, BLOCK_SIZE, WIDTH
            )
            best, total = _of(head, heads, bests), _of(head, heads, totals)
            higher = tl.maximum(best, tl.max(scores, 0))
            total = total * tl.exp2(best - higher) + tl.sum(tl.exp2(scores - higher), 0)
            bests, totals = tl.where(heads == head, higher, bests), tl.where(heads == head, total, totals)
    strongest, before, first, second, third = -1.0, 0.0, 0.0, 0.0, 0.0
    looked_at = step * 0  # of its type
    for start in range(0, size, TILE):
        column = start + columns
        at = text_start + column
        attention = tl.zeros((TILE,), tl.float32)
        for head in tl.static_range(HEADS):
            there = (column < size) & (at < length)
            scores = _scores(
                queries, caches, head, table, at, there, scale, block_stride, place_stride, BLOCK_SIZE, WIDTH
            )
            attention += tl.exp2(scores - _of(head, heads, bests)) / (_of(head, heads, totals) * HEADS)
        attention = tl.where((column <= step) & (column < size), attention, 0.0)
        most = tl.max(attention, 0)
        where_most = tl.min(tl.where(attention == most, column, size), 0)
        looked_at = tl.where(most > strongest, where_most, looked_at)
        strongest = tl.maximum(strongest, most)
        before = tl.maximum(before, tl.max(tl.where(column < size - _SHORT_TEXT, attention, 0.0), 0))
        first += tl.sum(tl.where(column == size - 3, attention, 0.0), 0)
        second += tl.sum(tl.where(column == size - 2, attention, 0.0), 0)
        third += tl.sum(tl.where(column == size - 1, attention, 0.0), 0)
    # From here on it is `alignment.follow`, for one request.
    states += slot * STATE
    expected, position, completed_at = tl.load(states), tl.load(states + 1), tl.load(states + 2)
    way = looked_at - position
    position = tl.where((way > _BACK) & (way < _AHEAD), looked_at.to(tl.float32), position)
    counts = tl.where(completed_at > 0, 1.0, 0.0)
    completed_at = tl.where((completed_at == 0) & (position >= size - _LAST), (step + 2).to(tl.float32), completed_at)
    first = tl.load(states + 3) + first * counts
    second = tl.load(states + 4) + second * counts
    third = tl.load(states + 5) + third * counts
    repeated = tl.load(states + 6) + before * counts
    if step >= expected:
        tl.store(states, (step + 1).to(tl.float32))
        tl.store(states + 1, position)
        tl.store(states + 2, completed_at)
        tl.store(states + 3, first)
        tl.store(states + 4, second)
        tl.store(states + 5, third)
        tl.store(states + 6, repeated)
    held = (looked_at < size - _LAST) & (size > _SHORT_TEXT) & (step < held_for)
    forced = (tl.maximum(tl.maximum(first, second), third) >= _LONG_TAIL) | (repeated > _REPETITION)
    for stream in tl.static_range(STREAMS):
        place = logits + (row * STREAMS + stream) * vocabulary + end
        logit = tl.load(place)
        tl.store(place, tl.where(forced, _FORCED, tl.where(held, _HELD, logit)))


def follow_requests(
    logits: torch.Tensor,
    queries: torch.Tensor,
    keys: list[torch.Tensor],
    pointers: torch.Tensor,
    requests: torch.Tensor,
    begins: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor,
    states: torch.Tensor,
    text_start: int,
    end: int,
    streams: int,
) -> None:
    """Take in the newest attention of some requests; changes `states` and the end's logits in place.

    Args:
        logits: [N, streams * V] float32, contiguous.
        queries: [rows, heads, D] of a step, contiguous, D a power of two.
        keys: of each head [blocks, block size, D] of `queries`' dtype, views of one layout; channels contiguous.
        pointers: `addresses(keys)`.
        requests: [M, 5] int64, contiguous: row, slot in `states`, rows of the prompt, text tokens, and how many speech
            tokens the end is held back for.
        begins: [N + 1] int32, where in `queries` each row of the batch begins.
        lengths: [N] int32, cached positions of each row, the newest included.
        block_table: [N, most blocks] int32.
        states: [slots, STATE_WIDTH] float32, contiguous.
        text_start: position of the first text token of every request.
        end: the token whose logits change, in each of `streams` streams.
    """
    _, heads, width = queries.shape
    _follow[(len(requests),)](
        queries, pointers, requests, begins, lengths, block_table, states, logits,
        width**-0.5 * 1.4426950408889634, text_start, end, block_table.stride(0), keys[0].stride(0), keys[0].stride(1),
        logits.shape[1] // streams, streams, heads, keys[0].shape[1], width, _TILE, alignment.STATE_WIDTH,
        triton.next_power_of_2(heads), num_warps=_WARPS,
    )  # fmt: skip


def addresses(keys: list[torch.Tensor]) -> torch.Tensor:
    """Where the keys of each head begin in memory, int64 [heads]."""
    return torch.tensor([own.data_ptr() for own in keys], dtype=torch.int64, device=keys[0].device)
