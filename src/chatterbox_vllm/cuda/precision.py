"""float32 that means it, on CUDA too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# cuDNN's settings operator by operator. The older `allow_tf32` raises as soon as anyone, vLLM's batch-invariant mode
# among them, has set one of these.
_OPERATORS = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)

_lock = threading.Lock()
_inside = 0  # blocks that are open, in all threads
_outside: list[str] = []  # the settings before the first of them


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Convolutions and LSTMs in float32 without TF32, which cuDNN uses unless told; as a `with` block or a decorator.

    Products of 10-bit mantissas would change speech tokens at enrolment and let the vocoder's phase drift. The setting
    is the process's: it holds from the first thread that enters to the last that leaves.
    """
    global _inside, _outside
    with _lock:
        if _inside == 0:
            _outside = [operator.fp32_precision for operator in _OPERATORS]
            _set(["ieee"] * len(_OPERATORS))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _set(_outside)


def _set(precisions: list[str]) -> None:
    for operator, precision in zip(_OPERATORS, precisions, strict=True):
        operator.fp32_precision = precision
