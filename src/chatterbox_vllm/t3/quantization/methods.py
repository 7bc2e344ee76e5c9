"""What each quantization method of T3 means to vLLM, and where it can run. Free of vLLM itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from chatterbox_vllm.checkpoint.config import QuantizedPart, T3Config
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.storage import SCHEMES, require_bitsandbytes

T3_METHODS = ("bnb-4bit", "bnb-8bit", "awq", "fp8")
# Names in vLLM's registry of quantization configs: our own (t3/vllm/bitsandbytes.py, awq.py), and vLLM's.
BNB_CONFIG, AWQ_CPU_CONFIG = "chatterbox_bnb", "chatterbox_awq_cpu"
_FP8_CONFIG = "fp8_per_channel"
# Weights that share a scale and a zero point: the size that vLLM's kernels and published AWQ models have in common.
AWQ_GROUP = 128

_LEAST_BFLOAT16 = (8, 0)  # compute capability: cards before Ampere have none
_HALF = (torch.float16, torch.bfloat16)
_MAKE_AWQ = "make them with `chatterbox-vllm quantize MODEL --method awq -o DIR` and load DIR, or take bnb-4bit"


@dataclass(frozen=True)
class EngineQuantization:
    """How vLLM is told.

    Attributes:
        argument: its engine argument `quantization`.
        hf_config: the `quantization_config` of the model's `config.json`; None for none.
    """

    argument: str | None = None
    hf_config: dict[str, Any] | None = None


def automatic_dtype(method: str | None, device: torch.device) -> torch.dtype:
    """What T3 computes in where nobody says: bfloat16, but float32 on a CPU if the method can, float16 on old cards."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= _LEAST_BFLOAT16 else torch.float16
    return torch.bfloat16 if method in ("awq", "fp8") else torch.float32


def check_t3_quantization(method: str | None, dtype: torch.dtype, deterministic: bool) -> None:
    """Refuse what no device can do.

    Raises:
        ConfigError: an unknown method, or one that cannot compute in `dtype` or deterministically.
    """
    if method is None:
        return
    if method not in T3_METHODS:
        raise ConfigError(f"quantization must be one of {', '.join(map(repr, T3_METHODS))} or None, not {method!r}")
    if method in ("awq", "fp8") and dtype not in _HALF:
        raise ConfigError(
            f"{method} has no kernel for {str(dtype).removeprefix('torch.')}: give dtype='bfloat16' or 'float16'"
        )
    if deterministic:
        raise ConfigError(
            f"deterministic=True and quantization={method!r} exclude each other: the quantized kernels choose how to "
            "multiply by the size of the batch; leave one of the two out"
        )


def check_decoding(config: T3Config, method: str | None) -> None:
    """Refuse a method of vLLM's kernels for a model that vLLM does not run.

    Raises:
        ConfigError
    """
    if config.blocks is not None and method is not None and method not in SCHEMES:
        raise ConfigError(f"{method} cannot be had of a model that fills in blocks: take {' or '.join(SCHEMES)}")


def method_in_force(wanted: str | None, stored: QuantizedPart | None, file: str) -> str | None:
    """The method that T3 runs with: the checkpoint's own where its file is quantized, else the one asked for.

    Raises:
        ConfigError: the two differ, or AWQ is asked for and the file holds none.
    """
    if stored is None:
        if wanted == "awq":
            raise ConfigError(f"awq needs weights that were calibrated beforehand and {file} holds none: {_MAKE_AWQ}")
        return wanted
    if wanted not in (None, stored.method):
        raise ConfigError(
            f"{file} is quantized as {stored.method} already and cannot be loaded as {wanted}: "
            f"leave the method out, or load the model that it was made from"
        )
    return stored.method


def engine_quantization(
    method: str | None, double_quant: bool, stored: QuantizedPart | None, device: torch.device
) -> EngineQuantization:
    """What to tell vLLM.

    Args:
        method: from `method_in_force`.
        double_quant: of weights that are quantized while loading.
        stored: what the checkpoint's file holds, where it is quantized.

    Raises:
        ConfigError: the device or a library for it is not there.
    """
    if method is None:
        return EngineQuantization()
    if method in SCHEMES:
        require_bitsandbytes()
        return EngineQuantization(
            argument=BNB_CONFIG,
            hf_config={
                "quant_method": BNB_CONFIG,
                "method": method,
                "double_quant": stored.double_quant if stored else double_quant,
                "stored": stored is not None,
            },
        )
    if method == "awq":
        # On a GPU vLLM chooses the kernel by the card, so the argument is left to it.
        own = None if device.type == "cuda" else AWQ_CPU_CONFIG
        return EngineQuantization(
            argument=own,
            hf_config={
                "quant_method": own or "awq",
                "bits": 4,
                "group_size": AWQ_GROUP,
                "zero_point": True,
                "version": "gemm",
                "modules_to_not_convert": ["lm_head"],
            },
        )
    if device.type != "cuda":
        raise ConfigError(f"fp8 needs a CUDA device, not {device.type}: take bnb-8bit, which runs everywhere")
    return EngineQuantization(argument=_FP8_CONFIG)
