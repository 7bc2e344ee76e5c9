"""AWQ of T3, calibrated on T3's own inputs: prompts of both guidance streams and the speech that it gives to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.quantization.files import Progress
from chatterbox_vllm.quantization.storage import Tensors
from chatterbox_vllm.t3.conditioning import PromptBuilder, published_t3_shapes
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
from chatterbox_vllm.t3.quantization.awq_layout import awq_layout, quantize_awq
from chatterbox_vllm.t3.quantization.awq_search import Moments, search_layer
from chatterbox_vllm.t3.quantization.file import unquantized_keys


@dataclass(frozen=True)
class Utterance:
    """One sequence to calibrate on.

    Attributes:
        prompt: [P, 2H] float32 from `PromptBuilder.prompt`.
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
    weights.check(published_t3_shapes(config))
    tensors = {key: weights.get(key) for key in unquantized_keys(config)}
    for shape in (published_t3_shapes(config)[f"{layer_prefix(0)}{name}.weight"] for name in LINEARS):
        awq_layout(*shape)
    model = PlainT3(config, weights, device)
    builder = PromptBuilder.from_weights(config, weights)
    rows = [model.embed(builder, utterance.prompt, utterance.tokens) for utterance in utterances]
    for index, layer in enumerate(model.layers()):
        moments, rows = gather(model, layer, rows)
        found, prefix = search_layer(layer, moments), layer_prefix(index)
        for name in LINEARS:
            packed = quantize_awq(found.layer[name], found.shrinks[name])
            tensors |= {f"{prefix}{name}.{part}": tensor.cpu() for part, tensor in packed.items()}
        for name in (INPUT_NORM, POST_NORM):
            tensors[f"{prefix}{name}.weight"] = found.layer[name].cpu()
        if progress is not None:
            progress(index + 1, config.num_layers)
    return tensors


def gather(
    model: PlainT3, layer: Layer, rows: list[torch.Tensor]
) -> tuple[dict[tuple[str, ...], Moments], list[torch.Tensor]]:
    """Run a layer on rows [2, T, H]; the moments of its linear layers' inputs, and the rows after it."""
    moments = {names: Moments(layer[names[0]].shape[1], model.device) for names in (QKV, OUT, GATE_UP, DOWN)}
    return moments, [model.run_layer(layer, x, lambda names, value: moments[names].add(value)) for x in rows]
