"""What T3's transformer may be: the seam between the two backbones and all that counts, reads or quantizes layers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import Self

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights, load_module, published_shapes

Shape = tuple[int, ...]
# A layer's tensors by the published names without prefix and ".weight": "self_attn.q_proj", "ln_1", "ln_1.bias".
Layer = dict[str, torch.Tensor]
# Called with the names of the linear layers that share an input, and the input [..., in].
Observer = Callable[[tuple[str, ...], torch.Tensor], None]


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers of a layer that share an input.

    Attributes:
        names: theirs.
        sources: the tensors whose rows make the channels of that input, one a channel, so that a channel is divided by
            dividing them: a norm's weight and bias, or the end of a linear layer and its bias. Empty where something
            stands between that is not linear.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]


class PromptRows(nn.Module, ABC):
    """Makes the prompts of T3: what stands before the speech. On the CPU, where vLLM takes prompts from, in float32."""

    def __init__(self, config: T3Config):
        super().__init__()
        self.config = config

    @classmethod
    def from_weights(cls, config: T3Config, weights: Weights) -> Self:
        """The builder with the tensors of the published T3 file."""
        with torch.device("meta"):
            builder = cls(config)
        load_module(builder, weights, prefix="")
        return builder.eval()

    @abstractmethod
    def prompt_length(self, num_text_tokens: int, speech_prompt_tokens: int) -> int:
        """Rows of a prompt whose text (start and stop not counted) and reference clip have that many tokens."""

    @abstractmethod
    def conditioning(
        self, speaker_embedding: torch.Tensor, speech_prompt: torch.Tensor, exaggeration: float
    ) -> torch.Tensor:
        """The conditioning rows of one voice.

        Args:
            speaker_embedding: [1, E] float32, from the voice encoder.
            speech_prompt: [n] int64 speech tokens of the reference clip.
            exaggeration: emotion, 0.5 is neutral; of no effect where the model has none.

        Returns:
            [C, H] float32.
        """

    @abstractmethod
    def prompt(self, conditioning: torch.Tensor, text_tokens: list[int]) -> torch.Tensor:
        """The prompt of one text, [P, streams * H] in the dtype of `conditioning`.

        Args:
            conditioning: [C, H] from `conditioning`, perhaps rounded.
            text_tokens: without start and stop.
        """

    @abstractmethod
    def speech(self, tokens: torch.Tensor) -> torch.Tensor:
        """Rows [n, H] of the speech tokens [n] that a model has drawn after a prompt, as its first layer gets them."""


class Backbone(ABC):
    """One kind of transformer: its layers in a published file, its lengths, and one layer in plain torch.

    Attributes:
        prefix: what the keys of layer i start with, "{prefix}{i}.".
        groups: the linear layers, in the order in which a layer runs them.
        fused: vLLM's linear layers by name, and the published ones stacked in each.
        unclipped: linear layers that make queries and keys, and the share of their rows that does, first ones first.
        vectors: what else a layer has: norms and biases.
        transposed: whether a published linear weight is [in, out].
        rows_around_text: of a prompt, beside conditioning and text.
        on_device: what else than layers vLLM's model loads, as starts of keys.
        cacheable: whether rows at the head of prompts that begin alike have the same keys and values, so that those of
            one voice's conditioning need not be computed for every text.
    """

    prefix: ClassVar[str]
    groups: ClassVar[tuple[LinearGroup, ...]]
    fused: ClassVar[Mapping[str, tuple[str, ...]]]
    unclipped: ClassVar[Mapping[str, float]]
    vectors: ClassVar[tuple[str, ...]]
    transposed: ClassVar[bool] = False
    rows_around_text: ClassVar[int]
    on_device: ClassVar[tuple[str, ...]]
    cacheable: ClassVar[bool] = False
    builder: ClassVar[type[PromptRows]]

    @property
    def linears(self) -> tuple[str, ...]:
        """The names of all linear layers of a layer."""
        return tuple(name for group in self.groups for name in group.names)

    def layer_prefix(self, index: int) -> str:
        """What a layer's keys start with in the published file."""
        return f"{self.prefix}{index}."

    @abstractmethod
    def layer_shapes(self, config: T3Config) -> dict[str, Shape]:
        """Of all tensors of one layer by name; linear weights as [out, in]."""

    @abstractmethod
    def other_shapes(self, config: T3Config) -> dict[str, Shape]:
        """Keys and shapes of what else than prompts and layers is read from the published file."""

    def key(self, index: int, name: str) -> str:
        """The key of one tensor of a layer."""
        return f"{self.layer_prefix(index)}{name}" + ("" if name.endswith(".bias") else ".weight")

    def published_shapes(self, config: T3Config) -> dict[str, Shape]:
        """Keys and shapes of the published T3 file: everything that this package reads from it."""
        with torch.device("meta"):
            shapes = published_shapes(self.builder(config), prefix="")
        for index in range(config.num_layers):
            for name, shape in self.layer_shapes(config).items():
                turned = self.transposed and name in self.linears
                shapes[self.key(index, name)] = shape[::-1] if turned else shape
        return shapes | self.other_shapes(config)

    def read(self, weights: Weights, index: int, name: str) -> torch.Tensor:
        """One tensor of a layer, a linear weight as [out, in]."""
        value = weights.get(self.key(index, name))
        return value.t() if self.transposed and name in self.linears else value

    def layer_weights(self, config: T3Config) -> int:
        """How many weights the linear layers of one layer have."""
        shapes = self.layer_shapes(config)
        return sum(math.prod(shapes[name]) for name in self.linears)

    def widest_output(self, config: T3Config) -> int:
        """Of vLLM's linear layers, in channels."""
        shapes = self.layer_shapes(config)
        return max(sum(shapes[part][0] for part in parts) for parts in self.fused.values())

    @abstractmethod
    def conditioning_rows(self, config: T3Config) -> int:
        """The most rows that conditioning takes at the head of a prompt."""

    @abstractmethod
    def most_text_tokens(self, config: T3Config) -> int:
        """Of a prompt, start and stop not counted."""

    @abstractmethod
    def most_speech_tokens(self, config: T3Config) -> int:
        """That the model has positions for after a prompt."""

    @abstractmethod
    def most_positions(self, config: T3Config) -> int:
        """Of a sequence that the model can ever use."""

    @abstractmethod
    def run_layer(self, config: T3Config, layer: Layer, x: torch.Tensor, observe: Observer) -> torch.Tensor:
        """[B, T, H] -> [B, T, H], float32; `observe` sees the inputs of all linear layers."""

    @abstractmethod
    def enter(self, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        """Rows of prompt and speech [B, T, H] to what the first layer gets."""

    @abstractmethod
    def logits(self, config: T3Config, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last layer [..., H] -> [..., V]."""
