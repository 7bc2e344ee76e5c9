"""How to speak: what a caller asks for, and the values that a family speaks with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace

from typing_extensions import Self

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.t3.sampling import Sampling

MAX_SEED = 2**63 - 1
MOST_TOP_K = 100_000  # more than any vocabulary


@dataclass(frozen=True)
class SpeechValues:
    """A value for every parameter; `SpeechParameters` says what each means."""

    exaggeration: float
    cfg_weight: float
    temperature: float
    min_p: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int
    diffusion_steps: int

    @property
    def sampling(self) -> Sampling:
        """The talker's share of them."""
        return Sampling(
            cfg_weight=self.cfg_weight,
            temperature=self.temperature,
            min_p=self.min_p,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            max_tokens=self.max_tokens,
        )


@dataclass(frozen=True)
class SpeechParameters:
    """How to speak. What is None takes the family's value.

    Attributes:
        exaggeration: emotion, 0 to 2; 0.5 is neutral.
        cfg_weight: guidance towards the text, 0 to 10; 0 is none.
        temperature: 0 to 5; 0 always takes the likeliest token.
        min_p: drop tokens less likely than this share of the likeliest, 0 to 1.
        top_p: keep the likeliest tokens up to this total probability, above 0 to 1.
        top_k: keep so many of the likeliest tokens, before top_p; 0 keeps all.
        repetition_penalty: divides (multiplies, below zero) the logits of tokens already spoken; 0.1 to 10.
        max_tokens: most speech tokens of a piece, 25 to a second of speech. None also gives way to a small
            `max_model_len`: it takes what the prompt leaves.
        diffusion_steps: solver steps from noise to mel, 1 to 100.
        seed: of all randomness; None draws one, which the result tells.

    Raises:
        ConfigError: a value out of range or of the wrong type.
    """

    exaggeration: float | None = None
    cfg_weight: float | None = None
    temperature: float | None = None
    min_p: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    diffusion_steps: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("exaggeration", self.exaggeration, 0, 2)
        check_number("cfg_weight", self.cfg_weight, 0, 10)
        check_number("temperature", self.temperature, 0, 5)
        check_number("min_p", self.min_p, 0, 1)
        check_number("top_p", self.top_p, 0, 1, above=True)
        check_number("repetition_penalty", self.repetition_penalty, 0.1, 10)
        _check_integer("top_k", self.top_k, 0, MOST_TOP_K)
        _check_integer("max_tokens", self.max_tokens, 1, 4096)
        _check_integer("diffusion_steps", self.diffusion_steps, 1, 100)
        _check_integer("seed", self.seed, 0, MAX_SEED)

    def of_item(self, i: int) -> Self:
        """The parameters of item i of a list: its seed is i more than the first's."""
        return self if self.seed is None else replace(self, seed=(self.seed + i) % (MAX_SEED + 1))

    def resolved(self, defaults: SpeechValues, absent: Collection[str] = (), model: str = "this model") -> SpeechValues:
        """These values, and the defaults where none is given.

        Args:
            absent: parameters that the model does not have; they may be zero, which asks for nothing.
            model: its name, for the error.

        Raises:
            ConfigError: a value is given for a parameter that the model does not have.
        """
        values = {}
        for field in fields(SpeechValues):
            asked = getattr(self, field.name)
            if asked is not None and asked != 0 and field.name in absent:
                raise ConfigError(f"{model} has no {field.name}; leave it out, not {asked!r}")
            values[field.name] = getattr(defaults, field.name) if asked is None else asked
        return SpeechValues(**values)


def check_number(name: str, value: object, low: float, high: float, above: bool = False) -> None:
    """Refuse what is neither None nor a number in a range.

    Args:
        above: the lowest number itself is out.

    Raises:
        ConfigError: naming the parameter, the range and the value.
    """
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not low <= value <= high  # false for NaN too
        or (above and value == low)
    ):
        span = f"above {low} and up to {high}" if above else f"from {low} to {high}"
        raise ConfigError(f"{name} must be a number {span}, not {value!r}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be an integer from {low} to {high}, not {value!r}")
