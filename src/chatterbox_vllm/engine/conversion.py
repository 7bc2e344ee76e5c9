"""Voice conversion: a recording's own speech tokens, spoken by S3Gen in another voice. T3 has no part in it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from chatterbox_vllm.engine.chunks import SAMPLE_RATE, dry_at
from chatterbox_vllm.engine.prompts import Piece
from chatterbox_vllm.engine.request import SpeechRequest, segment_seed
from chatterbox_vllm.engine.source import Source
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, SpokenChunk
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.parameters import SpeechParameters, check_number
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.voices.hearing import Speaker

# Rendered in one pass up to this, as T3's utterances are at most: 40 s.
LONGEST_WHOLE = 1000
_NOT_HEARD = 10.0  # seconds: how much later what nobody waits for is due than what somebody does


@dataclass(frozen=True)
class ConversionRequest:
    """A recording to be said in another voice.

    Attributes:
        audio: a path, or the bytes of an audio file; any format, rate, channel count and length. It is decoded when
            its turn has come, so that a request that waits takes no memory for its samples.
        voice: whose `prompt` is the speaker's: a `Target`, or a `Voice`.
        parameters: `seed` and `diffusion_steps`; the others are T3's, and giving one is an error.
        priority, deadline: as for `SpeechRequest`.
        longest: seconds of audio that are taken; a longer recording is refused. None takes any.
        noise: S3Gen's noise, given instead of drawn from the seed; for a recording of at most 40 s.

    Raises:
        ConfigError: a value of the wrong type.
    """

    audio: str | os.PathLike[str] | bytes
    voice: Speaker
    parameters: SpeechParameters = field(default_factory=SpeechParameters)
    priority: int = 0
    deadline: float | None = None
    longest: float | None = None
    noise: S3GenNoise | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.audio, (str, os.PathLike, bytes)):
            raise ConfigError(f"audio must be a path or the bytes of a file, not {type(self.audio).__name__}")
        if not isinstance(getattr(self.voice, "prompt", None), FlowPrompt):
            raise ConfigError(
                f"voice must be a Target or a Voice, not {self.voice!r:.60}; ChatterboxVC.target_of makes one of a clip"
            )
        if not isinstance(self.parameters, SpeechParameters):
            raise ConfigError(f"parameters must be SpeechParameters, not {type(self.parameters).__name__}")
        for name, value in vars(self.parameters).items():
            if value is not None and name not in ("seed", "diffusion_steps"):
                raise ConfigError(f"a conversion has no {name}: it keeps how the recording is spoken; leave it out")
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ConfigError(f"priority must be an integer, not {self.priority!r}")
        check_number("deadline", self.deadline, 0, 1e9, above=True)
        check_number("longest", self.longest, 0, 1e9, above=True)
        if self.noise is not None and not isinstance(self.noise, S3GenNoise):
            raise ConfigError(f"noise must be an S3GenNoise, not {type(self.noise).__name__}")

    @property
    def text(self) -> str:
        """Nothing: of what a request says, only texts are counted."""
        return ""

    @property
    def uniforms(self) -> None:
        """Nothing: T3 draws nothing for it."""
        return None

    @property
    def name(self) -> str:
        """The recording's, for messages."""
        return "the recording" if isinstance(self.audio, bytes) else str(Path(self.audio))


Request = SpeechRequest | ConversionRequest


class ConversionStream:
    """A recording that is rendered chunk by chunk, one of them in S3Gen's hands at a time.

    Args:
        lookahead: tokens behind a chunk that S3Gen has to see.
        heard: whether somebody listens meanwhile, so that it goes before what nobody waits for.
    """

    def __init__(self, request: ConversionRequest, source: Source, seed: int, lookahead: int, heard: bool):
        self.request, self.source, self.seed = request, source, seed
        self.lookahead, self.heard = max(1, lookahead), heard
        self._chunks = 0  # that are rendered or being rendered
        self._in_work = False
        self._last: SpokenChunk | None = None
        self._submitted = time.monotonic()
        self._first_heard: float | None = None

    def next_chunk(self, k: int, piece: Piece, samples_out: int) -> ChunkToSpeak | None:
        """The next chunk, if the one before it is done; a recording is one piece."""
        ends = self.source.ends
        if self._in_work or self._chunks == len(ends):
            return None
        start, end = (0, *ends)[self._chunks], ends[self._chunks]
        self._in_work, self._chunks = True, self._chunks + 1
        last = self._chunks == len(ends)
        return ChunkToSpeak(
            tokens=self.source.tokens[start : end if last else end + self.lookahead],
            rendered=end - start,
            last=last,
            voice=self.request.voice,
            steps=piece.values.diffusion_steps,
            seed=segment_seed(self.seed, k),
            before=self._last,
            priority=self.request.priority,
            due=self._due(samples_out),
        )

    def spoken(self, k: int, piece: Piece, pieces: int, chunk: SpokenChunk) -> torch.Tensor:
        """Take in a chunk's audio, which is what is now ready of the request's."""
        self._in_work, self._last = False, chunk
        if len(chunk.audio) and self._first_heard is None:
            self._first_heard = time.monotonic()
        return chunk.audio

    def _due(self, samples_out: int) -> float:
        """When a listener has heard all that is out; without one, as for one who began with the request, but later."""
        if not self.heard:
            return self._submitted + samples_out / SAMPLE_RATE + _NOT_HEARD
        return dry_at(self._submitted, self._first_heard, samples_out)
