"""What S3Gen is given to speak: whole utterances, and chunks of those that T3 is still speaking."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.streaming.state import StreamState
from chatterbox_vllm.s3gen.streaming.window import CONTEXT_TOKENS
from chatterbox_vllm.voices.hearing import Speaker


@dataclass(frozen=True)
class TokensToSpeak:
    """One utterance for S3Gen.

    Attributes:
        speech_tokens: codebook ids only, special tokens removed.
        steps: diffusion steps.
        noise: given, or drawn from `seed` on the stage's device.
        order: of those that wait, the lowest goes first; of one order, who has waited longest.
        since: when it began to wait (`time.monotonic`).
        unheard: tokens at its end whose audio is cut off (see `SpeechEnding`).
    """

    speech_tokens: tuple[int, ...]
    voice: Speaker
    steps: int
    seed: int
    noise: S3GenNoise | None = None
    order: float = 0.0
    since: float = field(default_factory=time.monotonic)
    unheard: int = 0

    @property
    def window(self) -> int:
        """Speech tokens that S3Gen sees of it beside the prompt's."""
        return len(self.speech_tokens)


@dataclass(frozen=True)
class ChunkToSpeak:
    """The next chunk of an utterance in a stream.

    Attributes:
        tokens: codebook ids only, those that come after the chunk before.
        rendered: how many of them are spoken now; the others are only looked at.
        last: whether the utterance ends with them.
        steps, seed: as for `TokensToSpeak`, the same for all chunks of an utterance.
        before: what came of the chunk before; None for the first.
        priority: of those that wait, the lowest number goes first.
        due: and of one priority, the earliest of these times (`time.monotonic`), when its listener has nothing more to
            hear.
        unheard: as for `TokensToSpeak`.
    """

    tokens: tuple[int, ...]
    rendered: int
    last: bool
    voice: Speaker
    steps: int
    seed: int
    before: SpokenChunk | None = None
    priority: int = 0
    due: float = 0.0
    unheard: int = 0

    @property
    def order(self) -> tuple[int, float]:
        return self.priority, self.due

    @property
    def window(self) -> int:
        """Speech tokens that S3Gen sees for it beside the prompt's."""
        rendered = 0 if self.before is None else self.before.state.rendered
        return min(rendered, CONTEXT_TOKENS) + len(self.tokens)


@dataclass(frozen=True)
class SpokenChunk:
    """What came of a chunk.

    Attributes:
        audio: [n] float32 on the CPU, perhaps of no samples.
        state: what S3Gen goes on from.
        last: whether the utterance is out.
        heard: what the watermark goes on from, float32.
    """

    audio: torch.Tensor
    state: StreamState
    last: bool
    heard: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))


ToSpeak = TokensToSpeak | ChunkToSpeak
Spoken = torch.Tensor | SpokenChunk
