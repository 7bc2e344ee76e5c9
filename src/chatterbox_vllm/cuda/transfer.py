"""Small tables from the host to a device, without waiting for what the device still has to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` on `device`.

    A copy from ordinary host memory to a CUDA device waits until all work before it on the stream is done. From
    page-locked memory the copy is queued like any other work; PyTorch keeps that memory until the copy is through.
    """
    if torch.device(device).type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class ToHost:
    """A tensor on its way to host memory, page-locked if it comes from a CUDA device; the way begins here."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor, self._copied = tensor, None
        if tensor.is_cuda:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record()

    def wait(self) -> torch.Tensor:
        """The tensor, as soon as it is made: asleep rather than in a loop that would take a core from other threads."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensor


class RowsToHost:
    """One-dimensional tensors on their way to host memory, all of them by one copy.

    From a CUDA device they come as views of one page-locked block, which is held as long as any of them is.
    """

    def __init__(self, rows: Sequence[torch.Tensor]):
        self._rows, self._block = list(rows), None
        if rows and rows[0].is_cuda:
            self._lengths = [len(row) for row in rows]
            self._rows, self._block = [], ToHost(torch.cat(list(rows)))

    def wait(self) -> list[torch.Tensor]:
        """The rows, as soon as they are made."""
        return self._rows if self._block is None else list(self._block.wait().split(self._lengths))
