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


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in host memory, page-locked if it comes from a CUDA device.

    Waits for the work that makes it, asleep rather than in a loop that would take a core from other threads.
    """
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record()
    copied.synchronize()
    return host


def rows_to_host(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """One-dimensional tensors in host memory, all of them fetched by one copy.

    From a CUDA device they come as views of one page-locked block, which is held as long as any of them is.
    """
    if not rows or not rows[0].is_cuda:
        return list(rows)
    return list(to_host(torch.cat(list(rows))).split([len(row) for row in rows]))
