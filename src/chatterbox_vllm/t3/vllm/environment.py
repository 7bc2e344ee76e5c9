"""Which device runs what, and the environment that vLLM needs."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import torch

from chatterbox_vllm.errors import ConfigError, DeviceError

# vLLM reads these when it is imported or its engine starts.
_REQUIRED = {
    # One process, so that T3 and S3Gen share one CUDA context.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The V2 runner applies custom logits processors after the penalties; guidance must come before them.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # In its batch-invariant mode vLLM switches these graphs on by itself where a model's width is among those it has
    # tuned, T3's two streams of 1024 among them. A prompt in one got wrong logits; by the code, attention looks at the
    # switch when it is imported, which in one process has happened by then.
    "VLLM_USE_BREAKABLE_CUDAGRAPH": "0",
}
_DEFAULTS = {
    # Its warnings at every start are about choices made here on purpose.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # Compiling FlashInfer's sampler needs nvcc; the draw is our own (sampler.py).
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # Binding threads to cores takes them from S3Gen, and fails in containers.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
INSTALL = (
    "in a checkout ./start.sh installs the build for this machine; by hand it is the extra `cuda` with an NVIDIA GPU "
    "and the extra `cpu` elsewhere (see README.md)"
)


# Variables that this module has set, none of which was set before.
_ours: set[str] = set()


def _set_default(name: str, value: str) -> None:
    if name not in os.environ:
        _ours.add(name)
        os.environ[name] = value


def restore_environment() -> None:
    """Put back what `prepare_environment` and `require_ieee_float32` changed; vLLM's log level stays."""
    while _ours:
        os.environ.pop(_ours.pop(), None)


def prepare_environment() -> None:
    """Set what vLLM reads from the environment, until `restore_environment`. Call before vLLM is imported.

    Raises:
        ConfigError: the environment asks vLLM for something that T3 cannot run with.
    """
    for name, value in _REQUIRED.items():
        _set_default(name, value)
        if os.environ[name] != value:
            raise ConfigError(f"{name}={os.environ[name]} is set in the environment; T3 needs {name}={value}: unset it")
    for name, value in _DEFAULTS.items():
        _set_default(name, value)
    # vLLM sets up its logging only when an engine starts, and warns before.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"].upper())


def require_ieee_float32() -> None:
    """Make Triton's kernels, vLLM's attention among them, multiply float32 as float32; call before they compile.

    Their default is TF32, whose rounding depends on the batch and moves T3's logits by some hundredths.
    """
    _set_default("TRITON_F32_DEFAULT", "ieee")


def require_batch_invariance(device: torch.device) -> None:
    """Switch vLLM's batch-invariant kernels on: a row's result does not depend on the batch around it.

    Raises:
        ConfigError: there are none for this device, or vLLM has been imported without them.
    """
    if device.type != "cuda":
        raise ConfigError(
            "deterministic=True needs a CUDA device: vLLM has batch-invariant kernels for no other; in float32 on a "
            "CPU tokens depend on the batch only where two are equally likely to seven digits"
        )
    name, loaded = "VLLM_BATCH_INVARIANT", "vllm.v1.attention.ops.triton_unified_attention"
    if os.environ.get(name) != "1" and loaded in sys.modules:
        raise ConfigError("deterministic=True must be asked for by the first model of a process; start a new one")
    os.environ[name] = "1"


class _VllmModules:
    """Stands for `sys` in vLLM's kernel dispatcher and shows it vLLM's own modules only."""

    @property
    def modules(self) -> dict[str, Any]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}


def shield_kernel_dispatcher() -> None:
    """Keep vLLM 0.32 from looking into other libraries' modules when it starts on a CPU.

    It reads `vars()` of everything that any imported module holds, and fails on objects that answer to `__dict__` with
    something else: llvmlite's, which librosa brings.
    """
    from vllm.triton_utils import dispatcher

    dispatcher.sys = _VllmModules()


def vllm_device_type() -> str:
    """The device that the installed vLLM build runs on: "cuda" or "cpu".

    Raises:
        DeviceError: vLLM is not installed, cannot be imported, or is built for another platform.
    """
    prepare_environment()
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise DeviceError(f"vLLM cannot be imported ({error}); {INSTALL}") from error
    for kind in ("cuda", "cpu"):
        if current_platform.device_type == kind:
            return kind
    raise DeviceError(f"the installed vLLM finds no device that it can use here; {INSTALL}")
