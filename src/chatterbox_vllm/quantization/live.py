"""What quantization is in force, read from the live modules: their tensors are counted, no wish is repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from chatterbox_vllm.quantization.modules import QuantizedModule

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Attributes of a module that hold no weights of its own.
_NOT_WEIGHTS = ("_parameters", "_buffers", "_modules", "kv_cache")
_EIGHT_BITS = 0.75  # bytes a weight above which it is no 4-bit form


@dataclass
class ComponentInfo:
    """What one component holds.

    Attributes:
        method: of its quantized layers, as their tensors show it; None if there are none, "a+b" if they differ.
        quantized_layers: of `linear_layers`, which counts linear layers and LSTMs.
        quantized_weights: values in the quantized layers' matrices.
        quantized_bytes: what these matrices take, scales included.
        bytes_by_dtype: of all tensors of the component, by dtype's name.
        devices: where they are.
        unseen_layers: linear layers whose weights lie inside a library's own object and cannot be counted, which is
            what vLLM does with unquantized ones on a CPU.
    """

    method: str | None = None
    linear_layers: int = 0
    quantized_layers: int = 0
    quantized_weights: int = 0
    quantized_bytes: int = 0
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    unseen_layers: int = 0

    @property
    def total_bytes(self) -> int:
        """Of all tensors."""
        return sum(self.bytes_by_dtype.values())

    @property
    def bytes_per_weight(self) -> float | None:
        """Of the quantized matrices; None if there are none."""
        return self.quantized_bytes / self.quantized_weights if self.quantized_weights else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "total_bytes": self.total_bytes, "bytes_per_weight": self.bytes_per_weight}


def component_info(module: nn.Module) -> ComponentInfo:
    """Count what is in the memory of `module`: ours, plain torch's, or vLLM's."""
    info = ComponentInfo()
    methods, devices, seen = set(), set(), set()
    for layer in module.modules():
        matrices = list(_tensors(layer))
        fresh = 0  # bytes of the matrices, without what another layer shares with this one
        for name, tensor in matrices:
            place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
            if place in seen or tensor.is_meta:
                continue
            seen.add(place)
            kind = str(tensor.dtype).removeprefix("torch.")
            info.bytes_by_dtype[kind] = info.bytes_by_dtype.get(kind, 0) + tensor.nbytes
            fresh += 0 if name.startswith("bias") else tensor.nbytes
            devices.add(str(tensor.device))
        weights = _linear_weights(layer)
        if weights is None:
            continue
        info.linear_layers += 1
        if not any(tensor.numel() for _, tensor in matrices):
            info.unseen_layers += 1
            continue
        found = _method(weights, [t for name, t in matrices if not name.startswith("bias")])
        if found is not None:
            info.quantized_layers += 1
            info.quantized_weights += weights
            info.quantized_bytes += fresh
            methods.add(found)
    info.method = "+".join(sorted(methods)) or None
    info.devices = sorted(devices)
    return info


def quantization_info(components: Mapping[str, nn.Module | None]) -> dict[str, Any]:
    """`ComponentInfo` of each component as plain data; None for one that is not in memory."""
    return {name: None if m is None else component_info(m).as_dict() for name, m in components.items()}


def render(info: Mapping[str, Any]) -> str:
    """A table for a terminal of what `quantization_info` or `ChatterboxTTS.get_quantization_info` returned."""
    lines = [f"{'component':<14} {'method':<10} {'layers':>11} {'MiB':>8} {'bytes/weight':>13}  by dtype"]
    for name, found in info.items():
        if name in ("asked", "steps_down"):
            continue
        if found is None:
            lines.append(f"{name:<14} not in memory")
            continue
        ratio = found["bytes_per_weight"]
        dtypes = ", ".join(f"{dtype} {size / 2**20:.1f}" for dtype, size in sorted(found["bytes_by_dtype"].items()))
        layers = f"{found['quantized_layers']} of {found['linear_layers']}"
        lines.append(
            f"{name:<14} {found['method'] or '-':<10} {layers:>11} {found['total_bytes'] / 2**20:8.1f} "
            f"{'-' if ratio is None else format(ratio, '.4f'):>13}  {dtypes}"
        )
    if "asked" in info:
        lines.append(f"asked for: {info['asked']}")
    if info.get("steps_down"):
        lines.append(f"stepped down: {', then '.join(info['steps_down'])}")
    return "\n".join(lines)


def _tensors(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A layer's own tensors, wherever it keeps them: parameters, buffers, quantized matrices, libraries' states."""
    yield from layer.named_parameters(recurse=False)
    yield from layer.named_buffers(recurse=False)
    if isinstance(layer, QuantizedModule):
        for name, matrix in layer.matrices.items():
            yield from ((f"{name}.{part}", tensor) for part, tensor in matrix.tensors.items())
        return
    for name, value in vars(layer).items():
        if name not in _NOT_WEIGHTS and not isinstance(value, nn.Module):
            yield from _inside(name, value)


def _inside(name: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in an attribute: itself, or one level into a state object."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif hasattr(value, "absmax") or hasattr(value, "SCB"):  # bitsandbytes' states
        for part, inner in vars(value).items():
            if isinstance(inner, torch.Tensor):
                yield f"{name}.{part}", inner
            elif hasattr(inner, "absmax"):
                yield from _inside(f"{name}.{part}", inner)


def _linear_weights(layer: nn.Module) -> int | None:
    """Values in the matrices of a linear layer or LSTM; None for other modules."""
    if isinstance(layer, QuantizedModule):
        return sum(matrix.shape[0] * matrix.shape[1] for matrix in layer.matrices.values())
    if isinstance(layer, nn.LSTM):
        return sum(value.numel() for value in layer.parameters() if value.dim() == 2)
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    # vLLM's: its linear layers know their sizes and have a method; embeddings and heads have rows of a vocabulary.
    if hasattr(layer, "quant_method") and hasattr(layer, "input_size") and not hasattr(layer, "num_embeddings"):
        sizes: Any = layer  # torch declares every attribute of a module as "Tensor | Module"
        return int(sizes.input_size) * int(sizes.output_size)
    return None


def _method(weights: int, tensors: list[torch.Tensor]) -> str | None:
    """Which method a layer's tensors are of: by the dtype that its values are in and the bytes that they take."""
    if not tensors:
        return None
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.numel() * tensor.element_size()
    ((dtype, size),) = sizes.most_common(1)
    a_weight = size / max(weights, 1)
    if dtype in _FLOAT8:
        return "fp8"
    if dtype == torch.int32 and a_weight < _EIGHT_BITS:
        return "awq"
    if dtype in (torch.int8, torch.uint8):
        return "bnb-4bit" if a_weight < _EIGHT_BITS else "bnb-8bit"
    return None
