"""A request on its way through the stages: which pieces are where, and what of its audio is ready."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from chatterbox_vllm.audio.join import Joiner
from chatterbox_vllm.engine.chunks import SAMPLE_RATE, SpeechStream
from chatterbox_vllm.engine.conversion import ConversionStream, Request
from chatterbox_vllm.engine.prompts import Piece, Script
from chatterbox_vllm.engine.request import (
    AudioChunk,
    Delivery,
    FinishReason,
    SpeechResult,
    Timings,
)
from chatterbox_vllm.engine.said import Said
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, SpokenChunk
from chatterbox_vllm.errors import ChatterboxError, GenerationError

logger = logging.getLogger(__name__)

_FROM_BEST: tuple[FinishReason, ...] = ("stop", "length", "hasty", "runaway")
_WARNINGS = {
    "length": "reached max_tokens={} without end of speech; its end may be missing or invented",
    "hasty": "a part is shorter than its text can be said in, at every attempt; words may be missing",
    "runaway": "a part went on after its text was said, or repeated itself, at every attempt; it was cut",
}


@dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        serial: its number, which no other request ever has.
        label: the caller's name for it.
        delivery: how the audio goes out; what goes out in chunks is forgotten.
        stream: of a request whose delivery is that.
        conversion: of a recording that is rendered in chunks, whatever its delivery.
        script: None until it is prepared.
        admitted, talked: how many pieces were given to T3, and how many it has finished.
        waiting_samples: that went out in chunks and that the caller has not taken.
    """

    serial: int
    label: str
    index: int
    request: Request
    seed: int
    delivery: Delivery
    stream: SpeechStream | None = None
    conversion: ConversionStream | None = None
    script: Script | None = None
    admitted: int = 0
    talked: int = 0
    delivered: int = 0
    samples: int = 0
    waiting_samples: int = 0
    finish_reason: FinishReason = "stop"
    tokens: dict[int, tuple[int, ...]] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    faulty: dict[int, list[Said]] = field(default_factory=dict)  # attempts at pieces that are still to be spoken well
    live: set[str] = field(default_factory=set)  # ids of pieces in T3's or S3Gen's hands
    _voiced: dict[int, torch.Tensor] = field(default_factory=dict)  # ahead of an earlier piece
    _kept: list[torch.Tensor] = field(default_factory=list)
    _joiner: Joiner = field(default_factory=lambda: Joiner(SAMPLE_RATE))
    submitted: float = field(default_factory=time.monotonic)
    first_admission: float = 0.0
    last_token: float = 0.0
    first_audio: float = 0.0  # that went out

    @property
    def whole(self) -> bool:
        """Whether the audio is kept for the result."""
        return self.delivery is Delivery.WHOLE

    @property
    def pieces(self) -> list[Piece]:
        return [] if self.script is None else self.script.pieces

    @property
    def done(self) -> bool:
        """Whether all audio is out."""
        return self.script is not None and self.delivered == len(self.pieces)

    def piece_id(self, k: int) -> str:
        """A name for piece k that is new at every attempt."""
        return f"{self.serial}/{k}/{self.attempts.get(k, 0)}"

    def next_chunk(self) -> ChunkToSpeak | None:
        """Of a stream, what S3Gen can speak next; a piece begins when the one before it is out."""
        chunks = self.stream or self.conversion
        if chunks is None or self.delivered >= len(self.pieces):
            return None
        return chunks.next_chunk(self.delivered, self.pieces[self.delivered], self.samples)

    def spoke_chunk(self, k: int, chunk: SpokenChunk) -> list[AudioChunk]:
        """Take in a chunk of piece k; return what is now ready, which may be nothing."""
        chunks = self.stream or self.conversion
        assert chunks is not None  # it has some
        audio = chunks.spoken(k, self.pieces[k], len(self.pieces), chunk)
        self.delivered += chunk.last
        return self._passed_on(audio) if len(audio) else []

    def voiced(self, k: int, wave: torch.Tensor) -> list[AudioChunk]:
        """Take in the audio of piece k; return what is now ready, in the text's order: nothing of what is kept."""
        self._voiced[k] = wave
        ready = []
        while self.delivered in self._voiced:
            wave = self._joined(self.delivered, self._voiced.pop(self.delivered))
            self.delivered += 1
            ready += self._passed_on(wave)
        return ready

    def _passed_on(self, audio: torch.Tensor) -> list[AudioChunk]:
        """Keep what goes into the result, or let it go out."""
        if not self.whole:
            return [self._goes_out(audio)]
        self.samples += len(audio)
        self._kept.append(audio)
        return []

    def _goes_out(self, audio: torch.Tensor) -> AudioChunk:
        chunk = AudioChunk(self.serial, self.label, audio, self.samples)
        self.first_audio = self.first_audio or time.monotonic()
        self.samples += len(audio)
        self.waiting_samples += len(audio)
        return chunk

    def _joined(self, k: int, wave: torch.Tensor) -> torch.Tensor:
        """What piece k adds to the whole, with the silences that the text asks for around it."""
        segment, last = self.pieces[k].segment, k == len(self.pieces) - 1
        if len(self.pieces) > 1:
            wave = torch.from_numpy(self._joiner.add(wave, segment.pause, last))
        before = round(segment.before * SAMPLE_RATE)
        after = round(segment.pause * SAMPLE_RATE) if last else 0
        return F.pad(wave, (before, after)) if before or after else wave

    def result(self) -> SpeechResult:
        """After all went well."""
        audio = None
        if self.whole:
            audio = self._kept[0] if len(self._kept) == 1 else torch.cat(self._kept)
        return SpeechResult(
            self.serial,
            self.label,
            self.index,
            self.seed,
            audio=audio,
            samples=self.samples,
            speech_tokens=tuple(itertools.chain.from_iterable(self.tokens[k] for k in sorted(self.tokens))),
            finish_reason=self.finish_reason,
            retries=sum(self.attempts.values()),
            segments=len(self.pieces),
            timings=self.timings(),
            language=None if self.script is None else self.script.language,
        )

    def failure(self, error: ChatterboxError) -> SpeechResult:
        """After something went wrong."""
        return SpeechResult(
            self.serial,
            self.label,
            self.index,
            self.seed,
            samples=self.samples,
            error=error,
            segments=len(self.pieces),
            timings=self.timings(),
            language=None if self.script is None else self.script.language,
        )

    def ended(self, k: int, said: Said) -> None:
        """Note how piece k ended, if it is worse than how the others did; warn of the first that did not end well."""
        reason: FinishReason = "stop"
        if said.fault is not None and said.fault != "mute":
            reason = said.fault
        elif said.finish_reason == "length":
            reason = "length"
        if reason != "stop" and self.finish_reason == "stop":
            logger.warning("request %s: %s", self.label, _WARNINGS[reason].format(said.limit))
        self.finish_reason = max(self.finish_reason, reason, key=_FROM_BEST.index)

    def mute(self, k: int, tried: int) -> GenerationError:
        """What to tell of piece k, which stayed without a sound at so many attempts."""
        text = self.pieces[k].segment.text
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        times = "time" if tried == 1 else "times"
        return GenerationError(
            f"the model ended its speech before the first sound of {shown!r}, {tried} {times} (seed {self.seed}); "
            "try another seed, or put the words differently"
        )

    def timings(self) -> Timings:
        """Up to now."""
        now = time.monotonic()
        admitted = self.first_admission or now
        talked = self.last_token or now
        return Timings(
            queued=admitted - self.submitted,
            talking=max(0.0, talked - admitted),
            voicing=max(0.0, now - talked),
            total=now - self.submitted,
            first_audio=self.first_audio - self.submitted if self.first_audio else 0.0,
        )
