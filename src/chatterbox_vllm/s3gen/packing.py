"""Rows of different lengths end to end, without padding: one long matrix of frames, and tables that say whose is whose.

What a padded batch does with masks, kernels do here with two small tables: a convolution looks up a frame's position in
its row, an attention walks over tiles of queries and finds the row's keys beside each tile.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chatterbox_vllm.cuda.transfer import to_device
from chatterbox_vllm.s3gen.ragged import Lengths

QUERIES = 64  # frames in an attention tile
# Numbers of frames that a batch is filled up to where CUDA graphs are used, each of which has one: from a short
# utterance to 32 of 20 s with a prompt of 10 s. Steps are of a third to a half, so that graphs are few;
# `S3GenStage.choose` makes batches that nearly fill one. Below 2,048 frames an H100 takes about as long for fewer.
SIZES = (512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12_288, 16_384, 24_576, 32_768, 49_152)
_LARGE_STEP = 8192  # beyond them
_USUAL_ROWS = 32  # that a table of tiles has room for, at least


def packed_size(frames: int) -> int:
    """The smallest of `SIZES` that holds `frames`; beyond them, the next multiple of 8,192."""
    place = bisect.bisect_left(SIZES, frames)
    return SIZES[place] if place < len(SIZES) else -(-frames // _LARGE_STEP) * _LARGE_STEP


@dataclass(frozen=True)
class PackedLayout:
    """Where `streams` copies of some rows lie, one copy after another.

    Attributes:
        lengths: frames of each row.
        frames: of one stream, unused ones at its end included.
        index: [frames] int32, the frames of one stream in the padded batch [rows * longest]; 0 where unused.
        position: [streams * frames] int32, the frames before a frame in its row; 0 where unused.
        remaining: [streams * frames] int32, the frames after it in its row; 0 where unused.
        tiles: [tiles, 3] int32: first frame of the row, frames of the row, first query of the tile in the row. Tiles of
            long rows come first, so that none is left over at the end; unused tiles have rows of no frames.
    """

    lengths: tuple[int, ...]
    frames: int
    index: torch.Tensor
    position: torch.Tensor
    remaining: torch.Tensor
    tiles: torch.Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device | str, streams: int = 1, bucketed: bool = False
    ) -> PackedLayout:
        """Tables for rows of these lengths, made on the host and sent in one piece.

        Args:
            bucketed: fill up to `packed_size` frames, with tables of a size that depends on it alone for up to 32 rows.
        """
        used, rows = sum(lengths), len(lengths)
        frames = packed_size(used) if bucketed else used
        length = np.array(lengths)
        start = length.cumsum() - length
        row = np.arange(rows).repeat(length)
        position = np.arange(used) - start[row]
        index = row * max(lengths) + position

        count = (length + QUERIES - 1) // QUERIES
        order = (-length).argsort(kind="stable")
        of_tile = order.repeat(count[order])
        first = np.concatenate([np.arange(n) for n in count[order]]) * QUERIES
        tiles = np.stack([start[of_tile], length[of_tile], first], axis=1)
        tiles = np.concatenate([tiles + np.array([stream * frames, 0, 0]) for stream in range(streams)])
        tiles = tiles[(-tiles[:, 1]).argsort(kind="stable")]
        room = streams * (frames // QUERIES + max(_USUAL_ROWS, rows)) if bucketed else len(tiles)

        def filled(table: np.ndarray, size: int) -> np.ndarray:
            return np.concatenate([table, np.zeros((size - len(table), *table.shape[1:]), dtype=table.dtype)])

        tables = (
            filled(index, frames),
            np.tile(filled(position, frames), streams),
            np.tile(filled(length[row] - 1 - position, frames), streams),
            filled(tiles, room).ravel(),
        )
        table = torch.from_numpy(np.concatenate(tables).astype(np.int32))
        sent = to_device(table, device).split([len(part) for part in tables])
        of_frame, place, ahead, of_tiles = sent
        return cls(tuple(lengths), frames, of_frame, place, ahead, of_tiles.unflatten(0, (-1, 3)))

    @property
    def rows(self) -> None:
        """Its frames are not in rows of one length."""

    @property
    def tables(self) -> tuple[torch.Tensor, ...]:
        """What the packed estimator takes besides input and time."""
        return self.position, self.remaining, self.tiles

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, longest, channels] to one stream [frames, channels]; unused frames hold the first row's start."""
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, x: torch.Tensor) -> list[torch.Tensor]:
        """One stream [frames, channels] to its rows, [length, channels] each."""
        return list(x[: sum(self.lengths)].split(self.lengths))


@dataclass(frozen=True)
class PackedRows:
    """Where rows lie end to end, at one rate of the vocoder.

    Attributes:
        longest: frames of the longest row.
        start, length: [rows] int64, a row's first frame and its frames.
        row: [frames] int64.
        position, remaining: [frames] int32, frames of its row before and after a frame.
    """

    longest: int
    start: torch.Tensor
    length: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    remaining: torch.Tensor

    @classmethod
    def of(cls, lengths: Lengths, device: torch.device | str, longest: int | None = None) -> PackedRows:
        """Computed on the device, where the tables are large; only the lengths are sent.

        With lengths on the device, as in a CUDA graph, every row has the room of `longest` frames, and what lies behind
        its own is seen by none of its own.
        """
        if isinstance(lengths, torch.Tensor):
            assert longest is not None
            start = torch.arange(len(lengths), device=device) * longest
            row = torch.arange(len(lengths), device=device).repeat_interleave(longest)
            position = torch.arange(longest, device=device).repeat(len(lengths))
            remaining = lengths[row] - 1 - position
            return cls(longest, start, lengths, row, position.to(torch.int32), remaining.to(torch.int32))
        length = to_device(torch.tensor(lengths), device)
        start = length.cumsum(0) - length
        total = sum(lengths)
        row = torch.arange(len(lengths), device=device).repeat_interleave(length, output_size=total)
        position = torch.arange(total, device=device) - start[row]
        remaining = length[row] - 1 - position
        return cls(max(lengths), start, length, row, position.to(torch.int32), remaining.to(torch.int32))

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What a convolution takes besides input and weights."""
        return self.position, self.remaining

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, longest, channels] to [frames, channels]."""
        return x[self.row, self.position.long()]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """[frames, channels] to [rows, longest, channels], zeros in the padding."""
        padded = x.new_zeros(len(self.start), self.longest, x.shape[1])
        padded[self.row, self.position.long()] = x
        return padded
