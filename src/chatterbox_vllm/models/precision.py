"""float32 that means it, on CUDA too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0  # blocks that are open, in all threads
_outside = True  # cuDNN's setting before the first of them


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Convolutions in float32 without TF32, which cuDNN uses unless told; as a `with` block or a decorator.

    Products of 10-bit mantissas would change speech tokens at enrolment and let the vocoder's phase drift. The setting
    is the process's: it holds from the first thread that enters to the last that leaves.
    """
    global _inside, _outside
    with _lock:
        if _inside == 0:
            _outside = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = False
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                torch.backends.cudnn.allow_tf32 = _outside
