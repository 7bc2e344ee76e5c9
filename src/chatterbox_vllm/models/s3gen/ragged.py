"""Rows of different lengths in one padded batch.

Padding is always on the right. A row comes out as if it were alone where every operation that looks to the right of a
frame finds there what the row alone would show it: zeros for a convolution, no key for an attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def padding_mask(lengths: Sequence[int], device: torch.device | str) -> torch.Tensor | None:
    """Where the padding is: [rows, longest] bool, True past a row's length; None where all rows are equally long."""
    longest = max(lengths)
    if min(lengths) == longest:
        return None
    return torch.arange(longest, device=device) >= torch.tensor(lengths, device=device)[:, None]


def clear(x: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """`x` with zeros where `padding` (bool, broadcastable to x) is True; `x` itself without padding."""
    return x if padding is None else x.masked_fill(padding, 0)


def visible_keys(padding: torch.Tensor | None) -> torch.Tensor | None:
    """The attention mask [rows, 1, 1, longest] (True: may be attended to) of a padding mask; None stays None."""
    return None if padding is None else ~padding[:, None, None, :]
