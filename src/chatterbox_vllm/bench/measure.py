"""What a quantization method is measured on, and by: bytes, errors, speeds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm.quantization.live import ComponentInfo

Row = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """What each method is measured on.

    Attributes:
        seconds: of speech at each measurement.
        batches: numbers of requests that T3's speed is measured at.
        repeats: measurements of a speed, whose median counts; one more warms up.
        awq: a directory with T3 in AWQ, made from the same model; None calibrates one.
        dtype: that T3 computes in; None leaves it to device and method, as a model is served.
    """

    seconds: float = 5.0
    batches: tuple[int, ...] = (1,)
    repeats: int = 3
    awq: Path | None = None
    dtype: torch.dtype | None = None


def bytes_of(info: ComponentInfo, theory: int | None) -> Row:
    """What a component holds, and `theory`, the bytes that its quantized matrices should take."""
    per_weight, expected = info.bytes_per_weight, None
    if theory is not None and info.quantized_weights:
        expected = theory / info.quantized_weights
    return {
        "layers": f"{info.quantized_layers} of {info.linear_layers}",
        # vLLM keeps unquantized layers out of sight on a CPU.
        "MiB": None if info.unseen_layers else info.total_bytes / 2**20,
        "bytes/weight": None if per_weight is None else round(per_weight, 4),
        "theory": None if expected is None else round(expected, 4),
    }


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative L2 distance."""
    got, exact = got.double().cpu(), exact.double().cpu()
    return float((got - exact).norm() / exact.norm())


def median_speed(work: Callable[[], float], device: torch.device, repeats: int) -> float:
    """What `work` returns, a second; the median of `repeats` after one to warm up."""
    work()
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(done / (time.perf_counter() - start))
    return statistics.median(speeds)
