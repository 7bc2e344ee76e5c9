"""What this machine can quantize, and why not where it cannot."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import COMPONENTS, METHODS, MODULE_METHODS, QuantizationConfig
from chatterbox_vllm.quantization.storage import require_bitsandbytes
from chatterbox_vllm.t3.quantization.methods import automatic_dtype

_HALF = (torch.float16, torch.bfloat16)
# Compute capabilities: bitsandbytes' and vLLM's 4-bit kernels need Turing, 8-bit floats Ada.
_LEAST_CAPABILITY = {"bnb-4bit": (7, 5), "bnb-8bit": (7, 5), "awq": (7, 5), "fp8": (8, 9)}


@dataclass(frozen=True)
class Support:
    """Whether a method can be had for a component: `why_not` is None, or the reason and the remedy."""

    component: str
    method: str
    why_not: str | None

    @property
    def available(self) -> bool:
        return self.why_not is None


def check_quantization_support(device: str = "auto", dtype: str = "auto") -> dict[str, Any]:
    """What can be asked for on a device.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: T3's; "auto" is what `ChatterboxTTS.from_local` takes for each method.

    Returns:
        `device`, `bitsandbytes` (its version or None), and under `methods` each method's components with `available`
        and `why_not`.

    Raises:
        ConfigError, DeviceError: no such device or dtype.
    """
    from chatterbox_vllm.setup.device import resolve_device

    where = resolve_device(device)
    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in ("auto", *kinds):
        raise ConfigError(f"dtype must be 'auto' or one of {', '.join(map(repr, kinds))}, not {dtype!r}")
    methods: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        t3_dtype = kinds.get(dtype, automatic_dtype(method, where))
        methods[method] = {}
        for component in COMPONENTS:
            found = support(component, method, where, t3_dtype)
            methods[method][component] = {"available": found.available, "why_not": found.why_not}
    return {"device": str(where), "bitsandbytes": _bitsandbytes_version(), "methods": methods}


def support(component: str, method: str, device: torch.device, t3_dtype: torch.dtype) -> Support:
    """Whether `component` ("t3", "s3gen" or "voice_encoder") can be quantized by `method` on a device."""
    return Support(component, method, _why_not(component, method, device, t3_dtype))


def require_support(config: QuantizationConfig, device: torch.device, t3_dtype: torch.dtype) -> None:
    """Refuse what cannot be had on this machine, before anything is loaded.

    Raises:
        ConfigError: naming the component, the method, the reason and the remedy.
    """
    for component, method in config.methods.items():
        if method is not None and (why_not := support(component, method, device, t3_dtype).why_not):
            raise ConfigError(f"{component} cannot be quantized by {method} here: {why_not}")


def _why_not(component: str, method: str, device: torch.device, t3_dtype: torch.dtype) -> str | None:
    if component != "t3" and method not in MODULE_METHODS:
        return f"{method} is made for T3 only; use {' or '.join(MODULE_METHODS)}"
    if method == "bnb-4bit" or (method == "bnb-8bit" and component == "t3"):
        try:
            require_bitsandbytes()
        except ConfigError as error:
            return str(error)
    if method == "fp8" and device.type != "cuda":
        return "fp8 needs a CUDA device of compute capability 8.9; use bnb-8bit on the CPU"
    if component == "t3" and method in ("awq", "fp8") and t3_dtype not in _HALF:
        return f"{method} computes in half precision, not in {_name(t3_dtype)}; use dtype='bfloat16' or 'float16'"
    if device.type == "cuda":
        found, least = torch.cuda.get_device_capability(device), _LEAST_CAPABILITY[method]
        if found < least and not (component != "t3" and method == "bnb-8bit"):
            return f"{method} needs compute capability {_dotted(least)}, this card has {_dotted(found)}"
    return None


def _bitsandbytes_version() -> str | None:
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    try:
        require_bitsandbytes()
        return importlib.metadata.version("bitsandbytes")
    except (ConfigError, importlib.metadata.PackageNotFoundError):
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
