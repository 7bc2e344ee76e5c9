"""Every quantization method on every component: bytes on the live modules against theory, error, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm.config import ModelConfig, QuantizedParts
from chatterbox_vllm.errors import ChatterboxError, ConfigError
from chatterbox_vllm.quantization.config import METHODS, MODULE_METHODS
from chatterbox_vllm.quantization.info import ComponentInfo

Row = dict[str, Any]
NOT_HERE = "not here"  # what a row holds, with the reason, instead of figures
COMPONENTS: dict[str, tuple[str, ...]] = {
    "t3": tuple(METHODS),
    "s3gen": MODULE_METHODS,
    "voice_encoder": MODULE_METHODS,
}


@dataclass(frozen=True)
class Workload:
    """What each method is measured on.

    Attributes:
        seconds: of speech at each measurement.
        batches: numbers of requests that T3's speed is measured at.
        repeats: measurements of a speed, of which the best counts; one more warms up.
        awq: a directory with T3 in AWQ, made from the same model; None calibrates one.
        dtype: that T3 computes in; None leaves it to device and method, as a model is served.
    """

    seconds: float = 5.0
    batches: tuple[int, ...] = (1,)
    repeats: int = 3
    awq: Path | None = None
    dtype: torch.dtype | None = None


def method_rows(
    directory: Path,
    device: torch.device,
    component: str,
    methods: Sequence[str],
    workload: Workload,
    work: Path,
) -> Iterator[Row]:
    """A row for the component as it is, which all errors refer to by way of float32, then one for each method.

    A method that this machine cannot do has the reason in its row.

    Args:
        directory: an unquantized model.
        component: one of `COMPONENTS`; of `methods`, those it has are measured.
        work: an empty directory for quantized files.

    Raises:
        ConfigError: the model is quantized already.
        ChatterboxError: the component as it is cannot be measured.
    """
    from chatterbox_vllm.bench.methods_s3gen import S3GenMethods
    from chatterbox_vllm.bench.methods_t3 import T3Methods
    from chatterbox_vllm.bench.methods_voice_encoder import VoiceEncoderMethods

    if ModelConfig.from_directory(directory).quantized != QuantizedParts():
        raise ConfigError(f"{directory} is quantized already; give the model that it was made from")
    measured: S3GenMethods | T3Methods | VoiceEncoderMethods
    if component == "t3":
        measured = T3Methods(directory, device, workload, work)
    elif component == "s3gen":
        measured = S3GenMethods(directory, device, workload)
    else:
        measured = VoiceEncoderMethods(directory, device, workload)
    yield {"component": component, "method": "none", **measured.row(None)}
    for method in (m for m in COMPONENTS[component] if m in methods):
        try:
            row = measured.row(method)
        except ChatterboxError as error:
            row = {NOT_HERE: str(error)}
        yield {"component": component, "method": method, **row}


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


def best_speed(work: Callable[[], float], device: torch.device, repeats: int) -> float:
    """What `work` returns, a second; the best of `repeats` after one to warm up."""
    work()
    speeds = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(done / (time.perf_counter() - start))
    return max(speeds)
