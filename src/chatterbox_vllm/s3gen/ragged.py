"""Rows of different lengths in one padded batch.

Padding is always on the right. A row comes out as if it were alone where every operation that looks to the right of a
frame finds there what the row alone would show it: zeros for a convolution, no key for an attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from chatterbox_vllm.cuda.transfer import to_device

# Of rows: on the host, or [rows] int64 on the device where nothing may be read on the host, as in a CUDA graph.
Lengths = Sequence[int] | torch.Tensor

_STEP = 256  # frames between two sizes of a padded batch where CUDA graphs are used, each of which has one


def padding_mask(lengths: Lengths, device: torch.device | str, longest: int | None = None) -> torch.Tensor | None:
    """Where the padding is: [rows, longest] bool, True past a row's length; None where all rows are equally long.

    Args:
        longest: must be given with lengths on the device, which always have a mask; else it is the longest row's.
    """
    if isinstance(lengths, torch.Tensor):
        return torch.arange(longest, device=device) >= lengths[:, None]
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    return _past_the_end(lengths, longest, device)


def _past_the_end(lengths: Sequence[int], frames: int, device: torch.device | str) -> torch.Tensor:
    return torch.arange(frames, device=device) >= to_device(torch.tensor(lengths), device)[:, None]


def at_rate(lengths: Lengths, rate: int, more: int = 0) -> Lengths:
    """`rate` times the lengths, and `more`."""
    return rate * lengths + more if isinstance(lengths, torch.Tensor) else [rate * n + more for n in lengths]


def clear(x: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """`x` with zeros where `padding` (bool, broadcastable to x) is True; `x` itself without padding."""
    return x if padding is None else x.masked_fill(padding, 0)


def visible_keys(padding: torch.Tensor | None) -> torch.Tensor | None:
    """The attention mask [rows, 1, 1, longest] (True: may be attended to) of a padding mask; None stays None."""
    return None if padding is None else ~padding[:, None, None, :]


@dataclass(frozen=True)
class PaddedLayout:
    """Rows as a padded batch [rows, longest, channels]; `PackedLayout` is the same without padding.

    Attributes:
        lengths: frames of each row.
        frames: of the batch, at least those of the longest row.
        padding: [streams * rows, frames] bool, True in the padding; None if there is none.
    """

    lengths: tuple[int, ...]
    frames: int
    padding: torch.Tensor | None

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device | str, streams: int = 1, bucketed: bool = False
    ) -> PaddedLayout:
        """For rows of these lengths; `bucketed` pads further, to `padded_size` frames, and always has a mask."""
        if not bucketed:
            padding = padding_mask(lengths, device)
            frames = max(lengths)
        else:
            frames = padded_size(max(lengths))
            padding = _past_the_end(lengths, frames, device)
        return cls(tuple(lengths), frames, None if padding is None else padding.repeat(streams, 1))

    @property
    def rows(self) -> int:
        """All of `frames` frames."""
        return len(self.lengths)

    @property
    def tables(self) -> tuple[torch.Tensor, ...]:
        """What the estimator takes besides input and time."""
        return () if self.padding is None else (self.padding,)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, longest, channels] with zeros up to `frames`."""
        return F.pad(x, (0, 0, 0, self.frames - x.shape[1]))

    def unpack(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[rows, frames, channels] to its rows, [length, channels] each."""
        return [row[:length] for row, length in zip(x, self.lengths, strict=True)]


def padded_size(frames: int) -> int:
    """`frames` rounded up to the next multiple of 256, so that few sizes serve all lengths."""
    return -(-frames // _STEP) * _STEP
