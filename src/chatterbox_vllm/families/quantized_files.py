"""The tensors of quantized S3Gen and voice encoder files: which there are, and how they are made from published ones.

Quantized layers stand in a file under `state_tensors`' keys, in place of the published ones; all other tensors, the
enrolment nets' among them, stand there as published. `load_module` reads such a file back bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from chatterbox_vllm.checkpoint.config import S3GenConfig, VoiceEncoderConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module, published_shapes
from chatterbox_vllm.quantization.files import Progress
from chatterbox_vllm.quantization.modules import QuantizedModule, quantize_layers, state_tensors
from chatterbox_vllm.quantization.storage import Layout, Scheme, Tensors
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder

PartConfig = S3GenConfig | VoiceEncoderConfig


def quantized_file_layout(config: PartConfig, scheme: Scheme) -> Layout:
    """Keys, shapes and dtypes of the quantized tensors in the file of S3Gen or of the voice encoder."""
    layout: Layout = {}
    for prefix, name, layer in _quantized_layers(config, scheme):
        for weight, value in layer.named_parameters():
            if value.dim() == 2:
                own = scheme.layout((value.shape[0], value.shape[1]))
                layout |= {f"{prefix}{name}.{weight}.{part}": kind for part, kind in own.items()}
    return layout


def published_keys_replaced(config: PartConfig, scheme: Scheme) -> frozenset[str]:
    """Keys of the published file that a quantized one lacks."""
    return frozenset(
        key
        for prefix, name, layer in _quantized_layers(config, scheme)
        for key, shape in published_shapes(layer, f"{prefix}{name}.").items()
        if len(shape) == 2
    )


def quantized_file_tensors(
    config: PartConfig, weights: Weights, scheme: Scheme, progress: Progress | None = None
) -> Tensors:
    """All tensors of a quantized file, on the CPU, quantized there layer by layer.

    Raises:
        CheckpointError: `weights` is not a published file of these dimensions.
    """
    replaced = published_keys_replaced(config, scheme)
    tensors = {key: weights.get(key) for key in sorted(weights.keys - replaced)}
    layers = list(_quantized_layers(config, scheme))
    for done, (prefix, name, layer) in enumerate(layers, start=1):
        load_module(layer, weights, f"{prefix}{name}.", "cpu")
        tensors |= state_tensors(layer, f"{prefix}{name}.")
        if progress is not None:
            progress(done, len(layers))
    return tensors


def _quantized_layers(config: PartConfig, scheme: Scheme) -> Iterator[tuple[str, str, QuantizedModule]]:
    """Prefix, name and layer, on `meta`, of all that is quantized."""
    with torch.device("meta"):
        network = S3Gen(config) if isinstance(config, S3GenConfig) else VoiceEncoder(config)
    quantize_layers(network, network.quantizable_layers(), scheme)
    parts = network.published_parts() if isinstance(network, S3Gen) else {"": network}
    for prefix, part in parts.items():
        for name, layer in part.named_modules():
            if isinstance(layer, QuantizedModule):
                yield prefix, name, layer
