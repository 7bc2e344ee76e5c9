"""What a caller asks for, and what comes back."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import torch

from chatterbox_vllm.errors import ChatterboxError, ConfigError
from chatterbox_vllm.families.parameters import MAX_SEED, SpeechParameters, check_number
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.text.clean import Cleaning
from chatterbox_vllm.text.pauses import DEFAULT_PAUSES, Pauses
from chatterbox_vllm.voices.voice import Voice

__all__ = ["MAX_SEED", "AudioChunk", "Delivery", "SpeechParameters", "SpeechRequest", "SpeechResult", "Timings"]

TOKENS_PER_SECOND = 25  # speech tokens
# Odd and far from the differences that callers give to neighbouring requests.
_SEGMENT_STRIDE = 0x5851F42D4C957F2D
_ATTEMPT_STRIDE = 0x14057B7EF767814F


@dataclass(frozen=True)
class SpeechRequest:
    """A text of any length to speak with one voice.

    Attributes:
        text: of any form that `text.script.read_script` reads: prose, chapters, lists, with pauses of its own like
            [pause:0.5s]. It is cut into pieces where it is longer than the model speaks well.
        priority: of two requests that wait, the one with the lower number goes first. Requests of one priority take
            turns, a segment each.
        deadline: seconds from submission after which the request is dropped, with `DeadlineError`; None waits.
        pauses: seconds of silence where the text is cut.
        clean_text: make markdown, addresses, footnote marks and emoji fit to be spoken; True, or a `Cleaning`.
        language: of the text, as `Family.language` takes it; None is the model's only one, or else it is told from the
            text.
        prepared_text: the text holds already what its language would need a library for: Chinese spaces between words,
            Japanese no kanji, Hebrew vowels, Russian stress. Or it is to be spoken without.
        noise: S3Gen's noise, given instead of drawn from the seed (to reproduce another run's audio exactly).
        uniforms: T3's draws from 0 to below 1, given instead of drawn from the seed, one for each token at least. Both
            serve a text of one piece only.

    Raises:
        ConfigError: a value of the wrong type. What depends on the model is checked when the request is submitted.
    """

    text: str
    voice: Voice
    parameters: SpeechParameters = field(default_factory=SpeechParameters)
    priority: int = 0
    deadline: float | None = None
    pauses: Pauses = DEFAULT_PAUSES
    clean_text: bool | Cleaning = False
    language: str | None = None
    prepared_text: bool = False
    noise: S3GenNoise | None = None
    uniforms: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise ConfigError(f"text must be a string, not {type(self.text).__name__}")
        if not isinstance(self.voice, Voice):
            raise ConfigError(
                f"voice must be a Voice, not {self.voice!r:.60}; ChatterboxTTS.enrol makes one of an audio file"
            )
        if not isinstance(self.parameters, SpeechParameters):
            raise ConfigError(f"parameters must be SpeechParameters, not {type(self.parameters).__name__}")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ConfigError(f"priority must be an integer, not {self.priority!r}")
        check_number("deadline", self.deadline, 0, 1e9, above=True)
        if not isinstance(self.pauses, Pauses):
            raise ConfigError(f"pauses must be Pauses, not {type(self.pauses).__name__}")
        if not isinstance(self.clean_text, (bool, Cleaning)):
            raise ConfigError(f"clean_text must be True, False or a Cleaning, not {self.clean_text!r}")
        if self.language is not None and not isinstance(self.language, str):
            raise ConfigError(f"language must be a code such as 'de' or an English name, not {self.language!r}")
        if not isinstance(self.prepared_text, bool):
            raise ConfigError(f"prepared_text must be True or False, not {self.prepared_text!r}")
        if self.noise is not None and not isinstance(self.noise, S3GenNoise):
            raise ConfigError(f"noise must be an S3GenNoise, not {type(self.noise).__name__}")
        if self.uniforms is not None and not _are_uniforms(self.uniforms):
            raise ConfigError("uniforms must be a list of numbers from 0 to below 1, one for each token")


def _are_uniforms(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1 for value in values
    )


class Delivery(Enum):
    """How a request's audio reaches its caller."""

    WHOLE = "whole"  # in the result
    SEGMENTS = "segments"  # in chunks, each a whole segment
    STREAM = "stream"  # in chunks that are rendered while T3 speaks


FinishReason = Literal["stop", "length", "hasty", "runaway"]


@dataclass(frozen=True)
class Timings:
    """Where a request's time went, in seconds.

    Attributes:
        queued: from submission to the first segment's admission to T3.
        talking: from there to T3's last token.
        voicing: from there to the finished audio.
        total: all of it.
        first_audio: from submission to the first audio that went out in chunks; 0 where none did.
    """

    queued: float = 0.0
    talking: float = 0.0
    voicing: float = 0.0
    total: float = 0.0
    first_audio: float = 0.0


@dataclass(frozen=True)
class AudioChunk:
    """The next part of a request's audio, ready before the whole.

    A request's chunks, one after the other, are its whole audio.

    Attributes:
        audio: [n] float32 on the CPU at the model's sample rate, n > 0.
        start: the place of its first sample in the whole audio.
    """

    serial: int
    request_id: str
    audio: torch.Tensor
    start: int = 0


@dataclass(frozen=True)
class SpeechResult:
    """What became of one request.

    Attributes:
        serial: the scheduler's own number of the request, which no other request ever has.
        request_id: the caller's name for it, or one of ours.
        index: place of the request among those that were submitted together.
        seed: the seed in force.
        audio: [samples] float32 at the model's sample rate; None after a failure, and for a request whose audio went
            out in chunks.
        samples: how many there are of them, whether they are here or went out in chunks.
        error: why it failed, or None.
        speech_tokens: what T3 said, end-of-speech and other special tokens removed.
        finish_reason: "stop" at end-of-speech; "length" where `max_tokens` cut a segment; "runaway" or "hasty" where
            the guard found that of a segment at every attempt, see `guard.Fault`. The worst of all segments.
        retries: how often segments were spoken again, since the guard found fault with them or they were mute.
        segments: how many pieces the text was spoken in.
        language: the code of the language that it was spoken in; None where it was not told before a failure.
    """

    serial: int
    request_id: str
    index: int
    seed: int
    audio: torch.Tensor | None = None
    samples: int = 0
    error: ChatterboxError | None = None
    speech_tokens: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    retries: int = 0
    segments: int = 0
    timings: Timings = Timings()
    language: str | None = None


def draw_seed() -> int:
    """A fresh seed for a request that named none."""
    return secrets.randbelow(MAX_SEED + 1)


def segment_seed(seed: int, segment: int, attempt: int = 0) -> int:
    """The seed of a request's segment: the first has the request's own, so that a short text is what it was.

    Args:
        attempt: 0 at first; a segment that stayed mute or off its text is tried again with other draws.
    """
    return (seed + segment * _SEGMENT_STRIDE + attempt * _ATTEMPT_STRIDE) % (MAX_SEED + 1)
