"""What a caller asks for, and what comes back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from chatterbox_vllm.errors import ChatterboxError, ConfigError

if TYPE_CHECKING:
    from chatterbox_vllm.s3gen.noise import S3GenNoise
    from chatterbox_vllm.voices.voice import Voice

TOKENS_PER_SECOND = 25  # speech tokens
MAX_SEED = 2**63 - 1
# Odd and far from the differences that callers give to neighbouring requests.
_SEGMENT_STRIDE = 0x5851F42D4C957F2D


@dataclass(frozen=True)
class SpeechParameters:
    """How to speak. The defaults are the published English model's.

    Attributes:
        exaggeration: emotion, 0 to 2; 0.5 is neutral.
        cfg_weight: guidance towards the text, 0 to 10; 0 is none.
        temperature: 0 to 5; 0 always takes the likeliest token.
        min_p: drop tokens less likely than this share of the likeliest, 0 to 1.
        top_p: keep the likeliest tokens up to this total probability, above 0 to 1.
        repetition_penalty: divides (multiplies, below zero) the logits of tokens already spoken; 0.1 to 10.
        max_tokens: most speech tokens, 25 to a second of speech.
        diffusion_steps: solver steps from noise to mel, 1 to 100.
        seed: of all randomness; None draws one, which the result tells.

    Raises:
        ConfigError: a value out of range or of the wrong type.
    """

    exaggeration: float = 0.5
    cfg_weight: float = 0.5
    temperature: float = 0.8
    min_p: float = 0.05
    top_p: float = 1.0
    repetition_penalty: float = 1.2
    max_tokens: int = 1000
    diffusion_steps: int = 10
    seed: int | None = None

    def __post_init__(self) -> None:
        _number("exaggeration", self.exaggeration, 0, 2)
        _number("cfg_weight", self.cfg_weight, 0, 10)
        _number("temperature", self.temperature, 0, 5)
        _number("min_p", self.min_p, 0, 1)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("repetition_penalty", self.repetition_penalty, 0.1, 10)
        _integer("max_tokens", self.max_tokens, 1, 4096)
        _integer("diffusion_steps", self.diffusion_steps, 1, 100)
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED)


def _number(name: str, value: object, low: float, high: float, above: bool = False) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not low <= value <= high  # false for NaN too
        or (above and value == low)
    ):
        span = f"above {low} and up to {high}" if above else f"from {low} to {high}"
        raise ConfigError(f"{name} must be a number {span}, not {value!r}")


def _integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be an integer from {low} to {high}, not {value!r}")


@dataclass(frozen=True)
class SpeechRequest:
    """A text of any length to speak with one voice.

    Attributes:
        text: split into segments where it is longer than the model speaks well (text/split.py).
        priority: of two requests that wait, the one with the lower number goes first.
        deadline: seconds from submission after which the request is dropped, with `DeadlineError`; None waits.
        noise: S3Gen's noise, given instead of drawn from the seed (to reproduce another run's audio exactly).
        uniforms: T3's draws, given instead of drawn from the seed. Both serve a text of one segment only.
    """

    text: str
    voice: Voice
    parameters: SpeechParameters = field(default_factory=SpeechParameters)
    priority: int = 0
    deadline: float | None = None
    noise: S3GenNoise | None = None
    uniforms: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f"text must be a string, not {type(self.text).__name__}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ConfigError(f"priority must be an integer, not {self.priority!r}")
        if self.deadline is not None:
            _number("deadline", self.deadline, 0, 1e9, above=True)


@dataclass(frozen=True)
class Timings:
    """Where a request's time went, in seconds.

    Attributes:
        queued: from submission to the first segment's admission to T3.
        talking: from there to T3's last token.
        voicing: from there to the finished audio.
        total: all of it.
    """

    queued: float = 0.0
    talking: float = 0.0
    voicing: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class SpeechChunk:
    """The next part of a request's audio, ready before the whole: [samples] float32.

    A request's chunks, one after the other, are its result's audio.
    """

    request_id: str
    audio: torch.Tensor


@dataclass(frozen=True)
class SpeechResult:
    """What became of one request.

    Attributes:
        request_id: as submitted, or as the scheduler named it.
        index: place of the request among those that were submitted together.
        seed: the seed in force.
        audio: [samples] float32 at the model's sample rate, or None after a failure.
        error: why it failed, or None.
        speech_tokens: what T3 said, end-of-speech and other special tokens removed.
        finish_reason: "stop" at end-of-speech; "length" where `max_tokens` cut a segment, which often means that the
            model lost its way.
        segments: how many pieces the text was spoken in.
    """

    request_id: str
    index: int
    seed: int
    audio: torch.Tensor | None = None
    error: ChatterboxError | None = None
    speech_tokens: tuple[int, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    segments: int = 0
    timings: Timings = Timings()


def draw_seed() -> int:
    """A fresh seed for a request that named none."""
    return secrets.randbelow(MAX_SEED + 1)


def segment_seed(seed: int, segment: int) -> int:
    """The seed of a request's segment: the first has the request's own, so that a short text is what it was."""
    return (seed + segment * _SEGMENT_STRIDE) % (MAX_SEED + 1)
