"""Activation-aware search for AWQ (Lin et al., arXiv 2306.00978): which channels to protect, how far to clip.

A search of our own, some hundred lines, rather than `autoawq` (archived, and bound to models that transformers knows)
or `llmcompressor` (pins other versions of what vLLM needs): both want to run a text model on text, and T3's inputs are
embeddings of conditioning, text and speech in one or two streams.

Linear layers with one input are scaled together: input channel c of their weights times s_c, whatever makes the input
divided by s_c. With s = mean|x| ** a, normalised, a is chosen to make the output's squared error least after rounding.
That error needs the inputs only by their second moments X'X: for an error D of the weight it is the trace of D X'X D'.
Then each group's range is shrunk by the share that makes its own part of the output's error least.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chatterbox_vllm.t3.backbone import Backbone, Layer
from chatterbox_vllm.t3.quantization.awq_layout import rounded
from chatterbox_vllm.t3.quantization.methods import AWQ_GROUP

_EXPONENTS = tuple(i / 10 for i in range(10))
_SHRINKS = tuple(1 - i / 20 for i in range(10))


class Moments:
    """Second moments and mean magnitudes of a linear layer's inputs, gathered call by call."""

    def __init__(self, width: int, device: torch.device):
        self.second = torch.zeros(width, width, device=device)
        self.magnitude = torch.zeros(width, device=device)
        self.rows = 0

    def add(self, x: torch.Tensor) -> None:
        """x [..., in]."""
        flat = x.flatten(0, -2).float()
        self.second.addmm_(flat.t(), flat)
        self.magnitude += flat.abs().sum(0)
        self.rows += len(flat)

    @property
    def mean_magnitude(self) -> torch.Tensor:
        return self.magnitude / max(self.rows, 1)


@dataclass(frozen=True)
class SearchedLayer:
    """A layer ready for rounding.

    Attributes:
        layer: weights and norms, with the scales folded in; in full precision it computes what it did before.
        shrinks: for each linear layer, what `quantize_awq` takes, [out, in/128].
    """

    layer: Layer
    shrinks: dict[str, torch.Tensor]


@torch.inference_mode()
def search_layer(backbone: Backbone, layer: Layer, moments: dict[tuple[str, ...], Moments]) -> SearchedLayer:
    """Scale, then clip.

    Args:
        layer: as read, float32; not changed.
        moments: of the inputs of the backbone's groups, by their names.
    """
    folded = {name: tensor.clone() for name, tensor in layer.items()}
    # Where nothing can take the inverse, there are no scales.
    scales = {
        group.names: _channel_scales([layer[name] for name in group.names], moments[group.names])
        for group in backbone.groups
        if group.sources
    }
    for names, scale in scales.items():
        for name in names:
            folded[name] *= scale
    for group in backbone.groups:
        for source in group.sources:
            own = folded[source][-len(scales[group.names]) :]  # of a fused matrix, the values
            own /= scales[group.names].view(-1, *[1] * (own.dim() - 1))
    shrinks = {}
    for names, seen in moments.items():
        second = seen.second / torch.outer(scales[names], scales[names]) if names in scales else seen.second
        for name in names:
            # Outliers of queries and keys stay, as in the paper's own code: the softmax would be flattened.
            unclipped = round(backbone.unclipped.get(name, 0.0) * len(folded[name]))
            shrinks[name] = _best_shrinks(folded[name], second, unclipped)
    return SearchedLayer(folded, shrinks)


def _channel_scales(weights: list[torch.Tensor], moments: Moments) -> torch.Tensor:
    """The best scale [in] of the input channels of weights [out, in] that share an input."""
    magnitude = moments.mean_magnitude.clamp(min=1e-8)
    best, least = torch.ones_like(magnitude), float("inf")
    for exponent in _EXPONENTS:
        scale = magnitude**exponent
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = sum(_squared_error(rounded(w * scale) / scale - w, moments.second) for w in weights)
        if error < least:
            best, least = scale, error
    return best


def _squared_error(difference: torch.Tensor, second: torch.Tensor) -> float:
    return float(((difference @ second) * difference).sum())


def _best_shrinks(weight: torch.Tensor, second: torch.Tensor, unclipped: int) -> torch.Tensor:
    """[out, in/128]: for each group the share of its range that makes its part of the error least; 1 in the first rows.

    Args:
        unclipped: how many those are.
    """
    out_features, in_features = weight.shape
    groups = in_features // AWQ_GROUP
    best = torch.ones(out_features, groups, device=weight.device)
    if unclipped == out_features:
        return best
    # The groups' own blocks of the second moments, [groups, 128, 128].
    blocks = second.unflatten(0, (groups, -1)).unflatten(2, (groups, -1)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    least = torch.full_like(best, float("inf"))
    for shrink in _SHRINKS:
        difference = (rounded(weight, shrink) - weight).unflatten(1, (groups, -1)).transpose(0, 1)
        error = ((difference @ blocks) * difference).sum(-1).t()
        better = error < least
        better[:unclipped] = False
        best[better], least[better] = shrink, error[better]
    return best
