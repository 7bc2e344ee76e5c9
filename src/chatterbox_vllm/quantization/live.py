"""What quantization is in force: the live modules are asked for their methods, and their tensors are counted.

Nothing is concluded from dtypes, because kernels repack weights into dtypes of their own. A layer that computes with a
method knows the method: our layers carry their scheme, vLLM's carry an object that multiplies (`t3.vllm.live` asks it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from chatterbox_vllm.quantization.modules import QuantizedModule

# Attributes of a module that hold no weights of its own.
_NOT_WEIGHTS = ("_parameters", "_buffers", "_modules", "kv_cache")


@dataclass(frozen=True)
class LinearLayer:
    """What a linear layer or LSTM says about itself.

    Attributes:
        weights: values in its matrices.
        method: that its matrices are quantized by; None if they are floats.
        kernel: what multiplies with quantized matrices, where that is known.
    """

    weights: int
    method: str | None = None
    kernel: str | None = None


Inspect = Callable[[nn.Module], LinearLayer | None]


@dataclass
class ComponentInfo:
    """What one component holds.

    Attributes:
        method: of its quantized layers, as these say themselves; None if there are none, "a+b" if they differ.
        kernels: what multiplies with the quantized matrices; it may have repacked them into a form of its own.
        quantized_layers: of `linear_layers`, which counts linear layers and LSTMs.
        quantized_weights: values in the quantized layers' matrices.
        quantized_bytes: the memory that these matrices take now, scales and what the kernel added included.
        bytes_by_dtype: of all tensors of the component, by dtype's name. What a library keeps inside an object of its
            own is not among them.
        devices: where the tensors are.
        unseen_layers: linear layers whose weights lie inside a library's own object and cannot be counted, which is
            what vLLM does with unquantized ones on a CPU.
    """

    method: str | None = None
    kernels: list[str] = field(default_factory=list)
    linear_layers: int = 0
    quantized_layers: int = 0
    quantized_weights: int = 0
    quantized_bytes: int = 0
    bytes_by_dtype: dict[str, int] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    unseen_layers: int = 0

    @property
    def total_bytes(self) -> int:
        """Of all tensors that can be seen."""
        return sum(self.bytes_by_dtype.values())

    @property
    def bytes_per_weight(self) -> float | None:
        """Of the quantized matrices; None if there are none."""
        return self.quantized_bytes / self.quantized_weights if self.quantized_weights else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "total_bytes": self.total_bytes, "bytes_per_weight": self.bytes_per_weight}


def own_layer(layer: nn.Module) -> LinearLayer | None:
    """What a layer of ours or of plain torch says about itself; None for modules that are no linear layer or LSTM."""
    if isinstance(layer, QuantizedModule):
        # A matrix that is not loaded yet is not in `matrices`, and an LSTM's biases are never.
        weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in layer.matrices.values())
        return LinearLayer(weights, layer.scheme.method if layer.matrices else None)
    if isinstance(layer, nn.LSTM):
        return LinearLayer(sum(value.numel() for value in layer.parameters() if value.dim() == 2))
    if isinstance(layer, nn.Linear):
        return LinearLayer(layer.in_features * layer.out_features)
    return None


def component_info(module: nn.Module, inspect: Inspect = own_layer) -> ComponentInfo:
    """Ask every layer of `module` what it is, and count the tensors that are in memory.

    Args:
        inspect: what a layer says about itself; the layers of another library need a function of their own.
    """
    info = ComponentInfo()
    methods, kernels, devices = set[str](), set[str](), set[str]()
    seen: set[tuple[object, ...]] = set()
    for layer in module.modules():
        held = fresh = 0  # bytes of the matrices: all of them, and without what another layer shares with this one
        for name, tensor in _tensors(layer):
            if tensor.is_meta:
                continue
            is_bias = name.startswith("bias")
            held += 0 if is_bias else tensor.nbytes
            place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape)
            if place in seen:
                continue
            seen.add(place)
            kind = str(tensor.dtype).removeprefix("torch.")
            info.bytes_by_dtype[kind] = info.bytes_by_dtype.get(kind, 0) + tensor.nbytes
            fresh += 0 if is_bias else tensor.nbytes
            devices.add(str(tensor.device))
        said = inspect(layer)
        if said is None:
            continue
        info.linear_layers += 1
        if not held:
            info.unseen_layers += 1
        if said.method is not None:
            info.quantized_layers += 1
            info.quantized_weights += said.weights
            info.quantized_bytes += fresh
            methods.add(said.method)
            if said.kernel is not None:
                kernels.add(said.kernel)
    info.method = "+".join(sorted(methods)) or None
    info.kernels = sorted(kernels)
    info.devices = sorted(devices)
    return info


def render(info: Mapping[str, Any]) -> str:
    """A table for a terminal of what `ChatterboxTTS.get_quantization_info` returned."""
    lines = [f"{'component':<14} {'method':<10} {'layers':>11} {'MiB':>8} {'bytes/weight':>13}  by dtype"]
    unseen = []
    for name, found in info.items():
        if name in ("asked", "steps_down"):
            continue
        if found is None:
            lines.append(f"{name:<14} not in memory")
            continue
        if found["unseen_layers"]:
            unseen.append(f"{found['unseen_layers']} of {name}")
        ratio = found["bytes_per_weight"]
        dtypes = ", ".join(f"{dtype} {size / 2**20:.1f}" for dtype, size in sorted(found["bytes_by_dtype"].items()))
        layers = f"{found['quantized_layers']} of {found['linear_layers']}"
        lines.append(
            f"{name:<14} {found['method'] or '-':<10} {layers:>11} {found['total_bytes'] / 2**20:8.1f} "
            f"{'-' if ratio is None else format(ratio, '.4f'):>13}  {dtypes}"
        )
    if unseen:
        lines.append(
            f"not counted, because a library keeps the weights inside its own object: layers {', '.join(unseen)}"
        )
    if "asked" in info:
        lines.append(f"asked for: {info['asked']}")
    if info.get("steps_down"):
        lines.append(f"stepped down: {', then '.join(info['steps_down'])}")
    return "\n".join(lines)


def _tensors(layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A layer's own tensors: parameters, buffers, quantized matrices, and plain attributes such as a workspace."""
    yield from layer.named_parameters(recurse=False)
    yield from layer.named_buffers(recurse=False)
    if isinstance(layer, QuantizedModule):
        for name, matrix in layer.matrices.items():
            yield from ((f"{name}.{part}", tensor) for part, tensor in matrix.tensors.items())
    for name, value in vars(layer).items():
        if name not in _NOT_WEIGHTS and isinstance(value, torch.Tensor):
            yield name, value
