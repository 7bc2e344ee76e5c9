"""The tensors of a quantized T3 file: which there are, and how they are made from the published ones.

Linear layers in bnb are stored as vLLM fuses them (`…self_attn.qkv_proj.packed`, `….scales`, …), for AWQ one by one
under their published names (`…self_attn.q_proj.qweight`, …), which is what vLLM's own loader takes. Everything else
stands in the file in its published precision: embeddings, norms, biases, head and conditioning are not quantized, and a
later load computes in any dtype with exactly what quantizing while loading gives.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chatterbox_vllm.checkpoint.config import QuantizedPart, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.quantization.bnb import check_product
from chatterbox_vllm.quantization.files import Progress
from chatterbox_vllm.quantization.storage import Layout, Tensors, scheme_of
from chatterbox_vllm.t3.backbone import Layer
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.awq_layout import awq_layout, dequantize_awq


def quantized_linears(config: T3Config, method: str) -> Mapping[str, tuple[str, ...]]:
    """A layer's quantized layers by their names in the file, and the published ones that each is made of."""
    backbone = backbone_of(config)
    return {name: (name,) for name in backbone.linears} if method == "awq" else backbone.fused


def quantized_t3_layout(config: T3Config, part: QuantizedPart) -> Layout:
    """Keys, shapes and dtypes of the quantized tensors in a T3 file.

    Raises:
        ConfigError: a layer of these dimensions does not fit the method.
    """
    backbone = backbone_of(config)
    shapes = backbone.layer_shapes(config)
    own: Layout = {}
    for name, parts in quantized_linears(config, part.method).items():
        out_features, in_features = sum(shapes[p][0] for p in parts), shapes[parts[0]][1]
        if part.method == "awq":
            layout = awq_layout(out_features, in_features)
        else:
            scheme = scheme_of(part.method, part.double_quant)
            check_product(scheme, in_features)
            layout = scheme.layout((out_features, in_features))
        own |= {f"{name}.{tensor}": kind for tensor, kind in layout.items()}
    prefixes = map(backbone.layer_prefix, range(config.num_layers))
    return {f"{prefix}{name}": kind for prefix in prefixes for name, kind in own.items()}


def unquantized_keys(config: T3Config) -> list[str]:
    """Keys of the published file that a quantized one holds too."""
    backbone = backbone_of(config)
    linears = {backbone.key(i, name) for i in range(config.num_layers) for name in backbone.linears}
    return [key for key in backbone.published_shapes(config) if key not in linears]


class QuantizedT3(PlainT3):
    """A quantized T3 file in plain torch: its layers dequantized to float32 when they are needed, to check against."""

    def __init__(self, config: T3Config, weights: Weights, part: QuantizedPart, device: torch.device | str = "cpu"):
        super().__init__(config, weights, device)
        self.part = part
        self._layout = quantized_t3_layout(config, part)

    def layer(self, index: int) -> Layer:
        backbone = self.backbone
        layer = {name: self._read(backbone.key(index, name)).float() for name in backbone.vectors}
        own = backbone.layer_shapes(self.config)
        for name, parts in quantized_linears(self.config, self.part.method).items():
            stem = f"{backbone.layer_prefix(index)}{name}."
            # A bias, which GPT-2's layers have, stands beside the quantized tensors and is no part of the layout.
            tensors = {key.removeprefix(stem): self._read(key) for key in self._layout if key.startswith(stem)}
            shapes = [own[part] for part in parts]
            if self.part.method == "awq":
                whole = dequantize_awq(tensors)
            else:
                shape = (sum(out for out, _ in shapes), shapes[0][1])
                whole = scheme_of(self.part.method, self.part.double_quant).dequantize(tensors, shape, torch.float32)
            pieces = whole.split([out for out, _ in shapes])
            layer |= dict(zip(parts, pieces, strict=True))
        return layer

    def _read(self, key: str) -> torch.Tensor:
        return self.weights.get(key).to(self.device)


def quantize_t3_bnb(
    config: T3Config, weights: Weights, part: QuantizedPart, progress: Progress | None = None
) -> Tensors:
    """All tensors of a T3 file in NF4 or INT8, quantized on the CPU, layer by layer.

    Raises:
        ConfigError: bitsandbytes is not there.
        CheckpointError: `weights` is not a published T3 file of these dimensions.
    """
    scheme, backbone = scheme_of(part.method, part.double_quant), backbone_of(config)
    weights.check(backbone.published_shapes(config))
    tensors = {key: weights.get(key) for key in unquantized_keys(config)}
    fused = quantized_linears(config, part.method)
    for index in range(config.num_layers):
        for done, (name, parts) in enumerate(fused.items(), start=1):
            weight = torch.cat([backbone.read(weights, index, part) for part in parts])
            stem = f"{backbone.layer_prefix(index)}{name}"
            tensors |= {f"{stem}.{key}": tensor for key, tensor in scheme.quantize(weight).items()}
            if progress is not None:
                progress(index * len(fused) + done, config.num_layers * len(fused))
    return tensors
