"""The tensors of a quantized T3 file: which there are, and how they are made from the published ones.

Linear layers in bnb are stored as vLLM fuses them (`…self_attn.qkv_proj.packed`, `….scales`, …), for AWQ one by one
under their published names (`…self_attn.q_proj.qweight`, …), which is what vLLM's own loader takes. Everything else
stands in the file in its published precision: embeddings, norms, head and conditioning are not quantized, and a later
load computes in any dtype with exactly what quantizing while loading gives.
"""

from __future__ import annotations

import torch

from chatterbox_vllm.checkpoint.config import QuantizedPart, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.quantization.bnb import check_product
from chatterbox_vllm.quantization.files import Progress
from chatterbox_vllm.quantization.storage import Layout, Tensors, scheme_of
from chatterbox_vllm.t3.conditioning import published_t3_shapes
from chatterbox_vllm.t3.plain import (
    DOWN,
    GATE_UP,
    INPUT_NORM,
    LINEARS,
    OUT,
    POST_NORM,
    QKV,
    Layer,
    PlainT3,
    layer_prefix,
)
from chatterbox_vllm.t3.quantization.awq_layout import awq_layout, dequantize_awq

# vLLM's fused layers, and the published ones stacked in them.
_FUSED = {
    "self_attn.qkv_proj": QKV,
    "self_attn.o_proj": OUT,
    "mlp.gate_up_proj": GATE_UP,
    "mlp.down_proj": DOWN,
}


def linear_stems(config: T3Config, method: str) -> dict[str, tuple[str, ...]]:
    """Quantized layers by the stem of their keys in the file, and the published stems that each is made of."""
    stems: dict[str, tuple[str, ...]] = {}
    for i in range(config.num_layers):
        prefix = layer_prefix(i)
        fused = {name: (name,) for name in LINEARS} if method == "awq" else _FUSED
        stems |= {prefix + name: tuple(prefix + part for part in parts) for name, parts in fused.items()}
    return stems


def quantized_t3_layout(config: T3Config, part: QuantizedPart) -> Layout:
    """Keys, shapes and dtypes of the quantized tensors in a T3 file.

    Raises:
        ConfigError: a layer of these dimensions does not fit the method.
    """
    published = published_t3_shapes(config)
    layout: Layout = {}
    for stem, parts in linear_stems(config, part.method).items():
        out_features = sum(published[f"{p}.weight"][0] for p in parts)
        in_features = published[f"{parts[0]}.weight"][1]
        if part.method == "awq":
            own = awq_layout(out_features, in_features)
        else:
            scheme = scheme_of(part.method, part.double_quant)
            check_product(scheme, in_features)
            own = scheme.layout((out_features, in_features))
        layout |= {f"{stem}.{name}": kind for name, kind in own.items()}
    return layout


def unquantized_keys(config: T3Config) -> list[str]:
    """Keys of the published file that a quantized one holds too."""
    linears = {f"{layer_prefix(i)}{name}.weight" for i in range(config.num_layers) for name in LINEARS}
    return [key for key in published_t3_shapes(config) if key not in linears]


class QuantizedT3(PlainT3):
    """A quantized T3 file in plain torch: its layers dequantized to float32 when they are needed, to check against."""

    def __init__(self, config: T3Config, weights: Weights, part: QuantizedPart, device: torch.device | str = "cpu"):
        super().__init__(config, weights, device)
        self.part = part
        self._layout = quantized_t3_layout(config, part)

    def layer(self, index: int) -> Layer:
        prefix = layer_prefix(index)
        layer = {name: self._read(f"{prefix}{name}.weight").float() for name in (INPUT_NORM, POST_NORM)}
        published = published_t3_shapes(self.config)
        for stem, parts in linear_stems(self.config, self.part.method).items():
            if not stem.startswith(prefix):
                continue
            tensors = {
                key.removeprefix(f"{stem}."): self._read(key) for key in self._layout if key.startswith(f"{stem}.")
            }
            shapes = [published[f"{part}.weight"] for part in parts]
            if self.part.method == "awq":
                whole = dequantize_awq(tensors)
            else:
                shape = (sum(out for out, _ in shapes), shapes[0][1])
                whole = scheme_of(self.part.method, self.part.double_quant).dequantize(tensors, shape, torch.float32)
            pieces = whole.split([out for out, _ in shapes])
            layer |= {part.removeprefix(prefix): piece for part, piece in zip(parts, pieces, strict=True)}
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
    scheme, published = scheme_of(part.method, part.double_quant), published_t3_shapes(config)
    tensors = {key: weights.get(key, published[key]) for key in unquantized_keys(config)}
    stems = linear_stems(config, part.method)
    for done, (stem, parts) in enumerate(stems.items(), start=1):
        weight = torch.cat([weights.get(f"{p}.weight", published[f"{p}.weight"]) for p in parts])
        tensors |= {f"{stem}.{name}": tensor for name, tensor in scheme.quantize(weight).items()}
        if progress is not None:
            progress(done, len(stems))
    return tensors
