"""Attention of a decode step to what several sequences have in common, read once for all of them.

Sequences of one voice begin with the same places, which lie in the same blocks of the KV cache: 376 for Turbo, most of
what a decode step reads. Rows are taken in tiles of 16, what matrix units multiply at least. `find_shared` sees how
many blocks a tile's sequences begin with alike, and `attend_shared` attends to these with matrix products: each tile in
a few parts at once, as one after another would keep few of the card's multiprocessors busy. `decode_attention` goes on
from there.
"""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

TILE = 16  # rows
PARTS = 3  # of what a tile shares
NOTHING = tl.constexpr(-1e30)  # the highest score where there is none; differences to it are numbers
_MOST_BLOCKS = 32  # that are looked at
_PLACES = 128  # that are read together
_WARPS = 4


@dataclass(frozen=True, eq=False)
class SharedPlaces:
    """What `decode_attention` goes on from. The tensors stay where they are, as CUDA graphs want it.

    Attributes:
        lengths: [tiles] int32, places that a tile's sequences share, whole blocks.
        state: [PARTS, rows, heads, D + 2] float32, of each part: what was summed of the values, the highest score in
            powers of 2, and the sum of the weights relative to it.
    """

    lengths: torch.Tensor
    state: torch.Tensor

    @classmethod
    def empty(cls, rows: int, heads: int, width: int, device: torch.device) -> SharedPlaces:
        """For batches of up to `rows` sequences."""
        tiles = -(-rows // TILE)
        return cls(
            torch.zeros(tiles, dtype=torch.int32, device=device),
            torch.zeros(PARTS, tiles * TILE, heads, width + 2, device=device),
        )


@triton.jit(do_not_specialize=["rows", "columns", "table_stride"])
def _find(
    table, lengths, shared, rows, columns, table_stride,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, COLUMNS)
    length = tl.load(lengths + row, mask=row < rows, other=0)
    live = length > 0
    looked_at = live[:, None] & (column < columns)[None, :]
    blocks = tl.load(table + row[:, None] * table_stride + column[None, :], mask=looked_at, other=0)
    lowest = tl.min(tl.where(looked_at, blocks, 2147483647), 0)
    highest = tl.max(tl.where(looked_at, blocks, -1), 0)
    alike = tl.min(tl.where(lowest == highest, COLUMNS, column), 0)
    # A block that is not full is still written to, and by one sequence alone.
    full = tl.min(tl.where(live, length // BLOCK_SIZE, COLUMNS), 0)
    several = tl.sum(live.to(tl.int32), 0) > 1
    tl.store(shared + tl.program_id(0), tl.where(several, tl.minimum(alike, full) * BLOCK_SIZE, 0))


@triton.jit(do_not_specialize=["rows", "table_stride"])
def _attend(
    query, cache, table, shared, state, scale, rows, table_stride,
    query_stride, block_stride, head_stride, place_stride, part_stride, state_stride,
    BLOCK_SIZE: tl.constexpr, WIDTH: tl.constexpr, PLACES: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    tile = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(shared + tile)
    if length > 0:
        row = tile * TILE + tl.arange(0, TILE)
        channels = tl.arange(0, WIDTH)
        places = tl.arange(0, PLACES)
        there = (row < rows)[:, None]
        q = tl.load(
            query + row[:, None].to(tl.int64) * query_stride + head * WIDTH + channels[None, :], mask=there, other=0.0
        )
        table += tile.to(tl.int64) * TILE * table_stride  # of its first row, which stands for all
        cache += head.to(tl.int64) * head_stride
        best = tl.full((TILE,), NOTHING, tl.float32)
        total = tl.zeros((TILE,), tl.float32)
        acc = tl.zeros((TILE, WIDTH), tl.float32)
        size = tl.cdiv(tl.cdiv(length, PARTS), PLACES) * PLACES
        end = tl.minimum(length, (part + 1) * size)
        for start in tl.range(part * size, end, PLACES, num_stages=STAGES):
            at = start + places
            inside = at < end
            block = tl.load(table + at // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
            keys = cache + (block * block_stride + (at % BLOCK_SIZE) * place_stride)[:, None] + channels[None, :]
            k = tl.load(keys, mask=inside[:, None], other=0.0)
            v = tl.load(keys + WIDTH, mask=inside[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
            scores = tl.where(inside[None, :], scores, float("-inf"))
            higher = tl.maximum(best, tl.max(scores, 1))
            fading = tl.exp2(best - higher)
            p = tl.exp2(scores - higher[:, None])
            total = total * fading + tl.sum(p, 1)
            acc = acc * fading[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
            best = higher
        own = state + part.to(tl.int64) * part_stride + row.to(tl.int64) * state_stride + head * (WIDTH + 2)
        tl.store(own[:, None] + channels[None, :], acc, mask=there)
        tl.store(own + WIDTH, best, mask=row < rows)
        tl.store(own + WIDTH + 1, total, mask=row < rows)


def find_shared(block_table: torch.Tensor, lengths: torch.Tensor, block_size: int, shared: SharedPlaces) -> None:
    """Note how many places the sequences of each tile share; none where a tile has one sequence.

    Args:
        block_table, lengths: as `decode_attention` gets them; of a tile with sequences the first row has one.
        block_size: places of a block.
    """
    _find[(len(shared.lengths),)](
        block_table, lengths, shared.lengths, len(lengths), block_table.shape[1], block_table.stride(0),
        block_size, TILE, _MOST_BLOCKS,
    )  # fmt: skip


def attend_shared(
    query: torch.Tensor, cache: torch.Tensor, block_table: torch.Tensor, shared: SharedPlaces, scale: float
) -> None:
    """Attend to the shared places; `shared.state` gets what `decode_attention` goes on from.

    Args:
        query, cache, block_table, scale: as `decode_attention` gets them.
    """
    rows, heads, width = query.shape
    precision = "ieee" if query.dtype == torch.float32 else "tf32"  # said of float32 alone
    state = shared.state
    _attend[(heads, -(-rows // TILE), PARTS)](
        query, cache, block_table, shared.lengths, state, scale, rows, block_table.stride(0),
        query.stride(0), cache.stride(0), cache.stride(1), cache.stride(2), state.stride(0), state.stride(1),
        cache.shape[2], width, _PLACES, TILE, PARTS, precision, 2, num_warps=_WARPS,
    )  # fmt: skip
