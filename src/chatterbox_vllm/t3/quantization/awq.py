"""AWQ of T3, calibrated on T3's own inputs: prompts of all guidance streams and the speech that it gives to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.quantization.files import Progress
from chatterbox_vllm.quantization.storage import Tensors
from chatterbox_vllm.t3.backbone import Layer
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.awq_layout import awq_layout, quantize_awq
from chatterbox_vllm.t3.quantization.awq_search import Moments, search_layer
from chatterbox_vllm.t3.quantization.file import unquantized_keys


@dataclass(frozen=True)
class Utterance:
    """One sequence to calibrate on.

    Attributes:
        prompt: [P, S * H] float32 from the builder's `prompt`.
        tokens: the speech tokens that T3 drew after it.
    """

    prompt: torch.Tensor
    tokens: tuple[int, ...]


def quantize_t3_awq(
    config: T3Config,
    weights: Weights,
    utterances: Sequence[Utterance],
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensors:
    """All tensors of a T3 file in AWQ, one layer in memory at a time.

    Every layer is searched on the inputs that it has in the unquantized model.

    Args:
        utterances: some thousand rows together, of prompts and speech as they will be met.
        device: where to search; the file does not depend on it but by rounding.

    Raises:
        ConfigError: the model's sizes do not fit the layout.
        CheckpointError: `weights` is not a published T3 file of these dimensions.
    """
    backbone = backbone_of(config)
    weights.check(backbone.published_shapes(config))
    tensors = {key: weights.get(key) for key in unquantized_keys(config)}
    for name in backbone.linears:
        out_features, in_features = backbone.layer_shapes(config)[name]
        awq_layout(out_features, in_features)
    model = PlainT3(config, weights, device)
    builder = backbone.builder.from_weights(config, weights)
    rows = [model.embed(builder, utterance.prompt, utterance.tokens) for utterance in utterances]
    for index, layer in enumerate(model.layers()):
        moments, rows = gather(model, layer, rows)
        found, prefix = search_layer(backbone, layer, moments), backbone.layer_prefix(index)
        for name in backbone.linears:
            packed = quantize_awq(found.layer[name], found.shrinks[name])
            tensors |= {f"{prefix}{name}.{part}": tensor.cpu() for part, tensor in packed.items()}
        for name in backbone.vectors:
            tensors[backbone.key(index, name)] = found.layer[name].cpu()
        if progress is not None:
            progress(index + 1, config.num_layers)
    return tensors


def gather(
    model: PlainT3, layer: Layer, rows: list[torch.Tensor]
) -> tuple[dict[tuple[str, ...], Moments], list[torch.Tensor]]:
    """Run a layer on rows [S, T, H]; the moments of its linear layers' inputs, and the rows after it."""
    groups = [group.names for group in model.backbone.groups]
    moments = {names: Moments(layer[names[0]].shape[1], model.device) for names in groups}
    return moments, [model.run_layer(layer, x, lambda names, value: moments[names].add(value)) for x in rows]
