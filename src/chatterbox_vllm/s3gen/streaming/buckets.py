"""The few shapes that batches of chunks are filled up to where CUDA graphs are used, each of which has one."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ROWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Buckets:
    """Shapes [rows, size] of padded batches.

    Attributes:
        sizes: ascending; what is longer than the last is filled up to a multiple of it, and has no graph.
        most: rows times size of a batch of several rows, so that its memory is bounded.
    """

    sizes: tuple[int, ...]
    most: int

    def size(self, length: int) -> int:
        """What a row is filled up to."""
        place = bisect.bisect_left(self.sizes, length)
        return self.sizes[place] if place < len(self.sizes) else -(-length // self.sizes[-1]) * self.sizes[-1]

    def rows(self, size: int) -> list[int]:
        """The numbers of rows of this size."""
        return [rows for rows in ROWS if rows == 1 or rows * size <= self.most]

    def shape(self, lengths: Sequence[int]) -> tuple[int, int]:
        """Of a batch of `groups`."""
        size = self.size(max(lengths))
        return next(rows for rows in self.rows(size) if rows >= len(lengths)), size

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of rows to pad together: those of one size, as many as there may be."""
        groups: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            size = self.size(lengths[i])
            if groups and self.size(lengths[groups[-1][0]]) == size and len(groups[-1]) < self.rows(size)[-1]:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def shapes(self, most_rows: int) -> Iterator[tuple[int, int]]:
        """All shapes of batches of up to so many rows, those with the most rows first."""
        for rows in reversed([rows for rows in ROWS if rows < 2 * most_rows]):
            yield from ((rows, size) for size in reversed(self.sizes) if rows in self.rows(size))
