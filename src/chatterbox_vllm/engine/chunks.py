"""A request in a stream: which speech tokens make its next chunk, and what of its audio is out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from chatterbox_vllm.audio.join_stream import StreamJoiner
from chatterbox_vllm.engine.prompts import Piece
from chatterbox_vllm.engine.request import SpeechRequest, segment_seed
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, SpokenChunk
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.ending import AS_SPOKEN, SpeechEnding
from chatterbox_vllm.s3gen.prompt import MOST_PROMPT_TOKENS
from chatterbox_vllm.voices.hearing import Target

SAMPLE_RATE = 24_000
_TOLD_TOGETHER = 9  # tokens at most, a third of a second of speech
_HASTY_CHUNKS = 2  # of a piece, for which nothing is waited for that they do not need
_SOONEST = -1e9  # seconds: the deadline of a stream that nobody has heard yet, before all that have begun


@dataclass(frozen=True)
class ChunkPlan:
    """How utterances are cut into chunks: by their own length alone, so that a seed gives the same audio at any load.

    Attributes:
        first: speech tokens of the chunks of a text's first piece; the last number goes on. The first chunk's audio is
            0.4 s shorter, which the vocoder holds back.
        later: of the pieces after it, which begin while the one before is still heard.
        shortest: tokens that the last chunk of a piece has at least where it is none of its first two: a short rest
            goes with the chunk before it, since a window's prompt costs as much for few tokens as for many.
        prompt: speech tokens of the reference clip that S3Gen continues behind, its last.

    Raises:
        ConfigError: a chunk or a prompt without tokens.
    """

    first: tuple[int, ...]
    later: tuple[int, ...]
    shortest: int = 1
    prompt: int = MOST_PROMPT_TOKENS

    def __post_init__(self) -> None:
        if self.prompt < 1:
            raise ConfigError(f"a chunk plan needs a prompt of at least one token, not {self.prompt}")
        for sizes in (self.first, self.later):
            if not sizes or min(sizes) < 1:
                raise ConfigError(f"a chunk plan needs chunks of at least one token, not {sizes}")

    def size(self, piece: int, chunk: int) -> int:
        """Tokens of a chunk of a piece, both counted from 0."""
        sizes = self.later if piece else self.first
        return sizes[min(chunk, len(sizes) - 1)]

    def known(self, piece: int, chunk: int, lookahead: int) -> int:
        """Tokens that have to be there before a chunk is cut, unless the piece ends before."""
        return self.size(piece, chunk) + max(lookahead, 0 if chunk < _HASTY_CHUNKS else self.shortest)

    def awaited(self, lookahead: int) -> int:
        """How many tokens the first sound of a text waits for."""
        return self.known(0, 0, lookahead)

    def told_every(self, lookahead: int) -> int:
        """How many tokens T3 may tell together, so that the first chunk is known as soon as its last token is drawn."""
        after_first = self.awaited(lookahead) - 1  # which is told at once
        return max(n for n in range(1, _TOLD_TOGETHER + 1) if after_first % n == 0)


# A GPU speaks several times faster than anybody listens, so that the third chunk may be long. Of the first one 0.24 s
# are heard, in which T3 draws the tokens of the second, 4 x real time, and S3Gen speaks them; then 0.96 s, in which the
# third asks for as much. One chunk more would be one prompt more for S3Gen.
QUICK = ChunkPlan(first=(16, 24, 100), later=(50, 100), shortest=25)
# On a CPU a window's prompt costs more than its chunk, so that few chunks come soonest to the end.
STEADY = ChunkPlan(first=(22, 40, 60, 100), later=(60, 100))


@dataclass
class _PieceStream:
    """A piece that T3 speaks or has spoken, and that is being rendered.

    Attributes:
        ended: whether T3 has spoken all of it.
        rendered: tokens in chunks that are rendered or being rendered.
        chunks: how many chunks were cut.
    """

    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    rendered: int = 0
    chunks: int = 0
    in_work: bool = False
    last: SpokenChunk | None = None


class SpeechStream:
    """What a request in a stream has beyond `Job`. One chunk of it is in S3Gen's hands at a time.

    Args:
        lookahead: tokens behind a chunk that S3Gen has to see.
        ending: of each piece.
    """

    def __init__(
        self,
        request: SpeechRequest,
        seed: int,
        plan: ChunkPlan,
        lookahead: int,
        ending: SpeechEnding = AS_SPOKEN,
    ):
        self.request, self.seed, self.plan, self.ending = request, seed, plan, ending
        self.voice = Target(request.voice.prompt.of_last(plan.prompt), request.voice.codebook)
        self.lookahead = max(1, lookahead)  # so that something is left for the last chunk
        self.submitted = time.monotonic()
        self.first_heard: float | None = None  # when the first audio came out
        self.called = 0  # pieces that may have had a turn at T3
        self._pieces: dict[int, _PieceStream] = {}
        self._joiner = StreamJoiner(SAMPLE_RATE)
        self._begun = False  # whether any of the current piece is out

    def hear(self, k: int, tokens: tuple[int, ...]) -> None:
        """T3 has spoken on in piece k."""
        self._pieces.setdefault(k, _PieceStream()).tokens.extend(tokens)

    def end(self, k: int) -> None:
        """T3 has spoken all of piece k."""
        self._pieces[k].tokens.extend(self.ending.appended)
        self._pieces[k].ended = True

    def tokens(self, k: int) -> tuple[int, ...]:
        """Of piece k, so far."""
        return tuple(self._pieces[k].tokens) if k in self._pieces else ()

    @property
    def rendering(self) -> bool:
        """Whether a chunk is in S3Gen's hands."""
        return any(piece.in_work for piece in self._pieces.values())

    @property
    def told_every(self) -> int:
        """How many tokens T3 may tell together."""
        return self.plan.told_every(self.lookahead)

    @property
    def awaited(self) -> int:
        """How many tokens of its next piece somebody waits for who has heard nothing yet."""
        return self.plan.awaited(self.lookahead) if self.first_heard is None else 0

    def next_chunk(self, k: int, piece: Piece, samples_out: int) -> ChunkToSpeak | None:
        """The next chunk of piece k, if its tokens are there and the one before it is done.

        Args:
            samples_out: of the request.
        """
        stream = self._pieces.get(k)
        if stream is None or stream.in_work:
            return None
        known = self.plan.known(k, stream.chunks, self.lookahead)
        whole = len(stream.tokens) - stream.rendered >= known
        if not whole and not stream.ended:
            return None
        size, left = self.plan.size(k, stream.chunks), stream.tokens[stream.rendered :]
        tokens, rendered = (left[: size + self.lookahead], size) if whole else (left, len(left))
        stream.in_work, stream.chunks, stream.rendered = True, stream.chunks + 1, stream.rendered + rendered
        return ChunkToSpeak(
            tokens=tuple(tokens),
            rendered=rendered,
            last=not whole,
            voice=self.voice,
            steps=piece.values.diffusion_steps,
            seed=segment_seed(self.seed, k),
            before=stream.last,
            priority=self.request.priority,
            due=self.dry_at(samples_out),
            unheard=self.ending.unheard,
        )

    def dry_at(self, samples_out: int) -> float:
        """When the listener has nothing more to hear (`time.monotonic`), by the request's samples that are out."""
        return dry_at(self.submitted, self.first_heard, samples_out)

    def spoken(self, k: int, piece: Piece, pieces: int, chunk: SpokenChunk) -> torch.Tensor:
        """Take in a chunk's audio; what is now ready of the request's, perhaps nothing yet."""
        stream = self._pieces[k]
        stream.in_work, stream.last = False, chunk
        segment, last = piece.segment, k == pieces - 1
        audio = chunk.audio.numpy()
        if pieces > 1:
            audio = self._joiner.add(audio, segment.pause, chunk.last, last)
        if len(audio) and not self._begun:
            self._begun = True
            audio = _padded(audio, segment.before, 0.0)
        if chunk.last:
            self._begun = False
            del self._pieces[k]
            if last:
                audio = _padded(audio, 0.0, segment.pause)
        if len(audio) and self.first_heard is None:
            self.first_heard = time.monotonic()
        return torch.from_numpy(audio)


def dry_at(submitted: float, first_heard: float | None, samples_out: int) -> float:
    """When a listener has nothing more to hear: who has heard nothing yet goes before all others."""
    return submitted + _SOONEST if first_heard is None else first_heard + samples_out / SAMPLE_RATE


def _padded(audio: np.ndarray, before: float, after: float) -> np.ndarray:
    silence = round(before * SAMPLE_RATE), round(after * SAMPLE_RATE)
    return np.pad(audio, silence) if any(silence) else audio
