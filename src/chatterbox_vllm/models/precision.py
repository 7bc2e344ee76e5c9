"""float32 that means it, on CUDA too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Convolutions in float32 without TF32, which cuDNN uses unless told; as a `with` block or a decorator.

    Products of 10-bit mantissas would change speech tokens at enrolment and let the vocoder's phase drift.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield
