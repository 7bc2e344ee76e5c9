"""Rows of different lengths end to end, without padding: one long matrix of frames, and tables that say whose is whose.

What a padded batch does with masks, kernels do here with two small tables: a convolution looks up a frame's position in
its row, an attention walks over tiles of queries and finds the row's keys beside each tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatterbox_vllm.s3gen.ragged import bucket

QUERIES = 64  # frames in an attention tile


@dataclass(frozen=True)
class Packing:
    """Where `streams` copies of some rows lie, one copy after another.

    Attributes:
        lengths: frames of each row.
        frames: of one stream, unused ones at its end included.
        index: [frames] int64, the frames of one stream in the padded batch [rows * longest]; 0 where unused.
        position: [streams * frames] int32, a frame's number in its row; 0 where unused.
        rest: [streams * frames] int32, the frames after it in its row; 0 where unused.
        tiles: [tiles, 3] int32: first frame of the row, frames of the row, first query of the tile in the row. Tiles of
            long rows come first, so that none is left over at the end; unused tiles have rows of no frames.
    """

    lengths: tuple[int, ...]
    frames: int
    index: torch.Tensor
    position: torch.Tensor
    rest: torch.Tensor
    tiles: torch.Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device | str, streams: int = 1, bucketed: bool = False
    ) -> Packing:
        """Tables for rows of these lengths; `bucketed` sizes them so that few sizes serve all lengths."""
        used, rows = sum(lengths), len(lengths)
        frames = bucket(used) if bucketed else used
        length = torch.tensor(lengths)
        start = length.cumsum(0) - length
        row = torch.arange(rows).repeat_interleave(length)
        position = torch.arange(used) - start[row]
        index = row * max(lengths) + position

        count = (length + QUERIES - 1) // QUERIES
        order = length.argsort(descending=True, stable=True)
        of_tile = order.repeat_interleave(count[order])
        first = torch.cat([torch.arange(n) for n in count[order].tolist()]) * QUERIES
        tiles = torch.stack([start[of_tile], length[of_tile], first], dim=1)
        tiles = torch.cat([tiles + torch.tensor([stream * frames, 0, 0]) for stream in range(streams)])
        tiles = tiles[tiles[:, 1].argsort(descending=True, stable=True)]
        room = streams * (frames // QUERIES + _power_of_two(rows)) if bucketed else len(tiles)

        def padded(table: torch.Tensor, size: int) -> torch.Tensor:
            return torch.cat([table, table.new_zeros(size - len(table), *table.shape[1:])])

        return cls(
            lengths=tuple(lengths),
            frames=frames,
            index=padded(index, frames).to(device),
            position=padded(position, frames).repeat(streams).to(torch.int32).to(device),
            rest=padded(length[row] - 1 - position, frames).repeat(streams).to(torch.int32).to(device),
            tiles=padded(tiles, room).to(torch.int32).to(device),
        )

    @property
    def layout(self) -> tuple[torch.Tensor, ...]:
        """What the packed estimator takes besides input and time."""
        return self.position, self.rest, self.tiles

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, longest, channels] to one stream [frames, channels]; unused frames hold the first row's start."""
        return x.flatten(0, 1)[self.index]

    def unpack(self, x: torch.Tensor) -> list[torch.Tensor]:
        """One stream [frames, channels] to its rows, [length, channels] each."""
        return list(x[: sum(self.lengths)].split(self.lengths))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class Places:
    """Where rows lie end to end, at one rate of the vocoder.

    Attributes:
        lengths: frames of each row.
        start, length: [rows] int64, a row's first frame and its frames.
        row: [frames] int64.
        position, rest: [frames] int32, frames of its row before and after a frame.
    """

    lengths: tuple[int, ...]
    start: torch.Tensor
    length: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    rest: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> Places:
        """Computed on the device, without waiting for it."""
        length = torch.tensor(lengths, device=device)
        start = length.cumsum(0) - length
        total = sum(lengths)
        row = torch.arange(len(lengths), device=device).repeat_interleave(length, output_size=total)
        position = torch.arange(total, device=device) - start[row]
        rest = length[row] - 1 - position
        return cls(tuple(lengths), start, length, row, position.to(torch.int32), rest.to(torch.int32))

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, longest, channels] to [frames, channels]."""
        return x[self.row, self.position.long()]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """[frames, channels] to [rows, longest, channels], zeros in the padding."""
        padded = x.new_zeros(len(self.lengths), max(self.lengths), x.shape[1])
        padded[self.row, self.position.long()] = x
        return padded
