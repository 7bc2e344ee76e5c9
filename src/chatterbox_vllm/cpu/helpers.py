"""Threads that help one with its parallel work on a CPU, how they are given back, and how to do without.

Each thread that computes in parallel has helpers of its own, which then wait for its next work. Where all of them are
more than there are cores, GNU's OpenMP puts those that wait to sleep at once, so that each of the parallel loops of a
T3 step begins later. On two cores a step of Nano took 16.5 ms where the threads that had loaded the model and
conditioned the prompt kept their helpers, and 13.4 where they gave them back.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import cache

import torch

_SOFT = 1  # omp_pause_soft of OpenMP 5.0: settings stay as they are
_OF_LLVM = "__kmpc_fork_call"  # whose OpenMP would pause the other threads' work, too


def give_back_helpers() -> None:
    """End the calling thread's helpers; its next parallel work starts new ones. Without GNU's OpenMP they stay."""
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@contextlib.contextmanager
def without_helpers() -> Iterator[None]:
    """Within, the calling thread does its work alone, and other threads work as before.

    For what takes a tenth of a millisecond, as long as it takes to wake helpers. PyTorch's `set_num_threads` would
    count for threads that begin meanwhile, too. Where PyTorch computes without OpenMP, nothing changes.
    """
    threads, set_number = torch.get_num_threads(), _number_setter()
    if threads == 1 or set_number is None:
        yield
        return
    set_number(1)
    try:
        yield
    finally:
        set_number(threads)


@cache
def _pause() -> Callable[[int], int] | None:
    """The function of the OpenMP that PyTorch has loaded."""
    loaded = ctypes.CDLL(None)
    return None if hasattr(loaded, _OF_LLVM) else getattr(loaded, "omp_pause_resource_all", None)


@cache
def _number_setter() -> Callable[[int], object] | None:
    """That counts for the calling thread's work, and for MKL's only until PyTorch's has been called."""
    return getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
