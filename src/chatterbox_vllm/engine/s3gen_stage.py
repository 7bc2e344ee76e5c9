"""The S3Gen stage: finished speech tokens become waveforms, in batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch

from chatterbox_vllm.engine.shares import TimeShares
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, Spoken, SpokenChunk, TokensToSpeak, ToSpeak
from chatterbox_vllm.errors import ChatterboxError, GenerationError
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.streaming.state import StreamChunk
from chatterbox_vllm.voices.hearing import Speaker

logger = logging.getLogger(__name__)

# Of prompts and generation together: a batch of more is split, so that its memory is bounded (32 of 20 s and 10 s).
MOST_FRAMES = 48_000
# What a batch costs before its first frame, in frames: on an H200 an evaluation of the estimator takes 3.06 ms for one
# utterance and 1.4 us a frame for 32.
_BATCH_COST = 1500
_FILLED_UP = 1.1  # how much longer batches become by being filled up, as an estimate
# While there are streams a batch may have half of the frames that wait: at least so many, and at most so many, so that
# a new stream need not wait (0.07 and 0.15 s on an H200, as an estimate).
_FRAMES_BESIDE_STREAMS = 4096, 8192
_LONGEST_TOKENS = 1000  # of an utterance, as published: 40 s


class AbandonedError(Exception):
    """Nobody waits for this batch any more."""


class S3GenStage:
    """Runs S3Gen over batches of utterances, or of chunks, of one step count; each gets what it would get alone."""

    def __init__(self, model: S3Gen, max_batch_size: int, max_frames: int = MOST_FRAMES):
        self.model = model
        self.max_frames = max_frames
        self.max_batch_size = max_batch_size
        self._shares = TimeShares()

    def release(self) -> None:
        """Let the model go; nothing runs here any more."""
        del self.model

    def record_graphs(self, voice: Speaker) -> int:
        """Record CUDA graphs for all batches of this voice's prompt length and the usual longest utterance.

        Returns:
            How many there are; none where they are not used.
        """
        longest = self.model.frames(_LONGEST_TOKENS, voice.prompt)[0]
        most = min(self.max_frames, self.max_batch_size * longest)
        return self.model.record_graphs(most, longest, chunks=self.max_batch_size)

    def choose(self, waiting: Sequence[ToSpeak]) -> list[int]:
        """Indices of those to run next: the most urgent, then as many as make good use of the time.

        Chunks and whole utterances take turns as `TimeShares` says. While there are streams, batches are short.
        All of one kind and step count, at most `max_batch_size`, and no more frames than memory is meant for. Batches
        are filled up to few sizes, so one more utterance can cost half a batch of frames that are none. Of those
        equally urgent the longest go first, as what fits in the end is short, and the batch ends where it and what is
        left over together take the least time.

        Args:
            waiting: those who wait longest first.
        """
        if not waiting:
            return []
        lengths = [self._frames(utterance) for utterance in waiting]
        kind = self._shares.next(waiting)
        places = [i for i, utterance in enumerate(waiting) if isinstance(utterance, kind)]
        first = min(places, key=lambda i: waiting[i].order)
        alike = [i for i in places if waiting[i].steps == waiting[first].steps and i != first]
        order = [first, *sorted(alike, key=lambda i: (waiting[i].order, -lengths[i]))]
        most = min(self.max_frames, _most_beside_streams(lengths)) if self._shares.streaming else self.max_frames
        best, least = 1, math.inf
        for count in range(1, min(len(order), self.max_batch_size) + 1):
            batch, left = [lengths[i] for i in order[:count]], [lengths[i] for i in order[count:]]
            computed = self.model.frames_computed(batch)
            if count > 1 and computed > most:
                break
            time = _BATCH_COST + computed + self._time_of_all(left, most)
            if time <= least:
                best, least = count, time
        return order[:best]

    def _time_of_all(self, lengths: Sequence[int], most: int) -> float:
        """What utterances of these lengths will take, in frames: in one batch, or in as many as it must be.

        Args:
            most: frames of a batch.
        """
        if not lengths:
            return 0
        if len(lengths) <= self.max_batch_size:
            computed = self.model.frames_computed(lengths)
            if computed <= most:
                return _BATCH_COST + computed
        batches = max(math.ceil(sum(lengths) / most), math.ceil(len(lengths) / self.max_batch_size))
        return batches * _BATCH_COST + _FILLED_UP * sum(lengths)

    def _frames(self, utterance: ToSpeak) -> int:
        return self.model.frames(utterance.window, utterance.voice.prompt)[0]

    @overload
    def run(
        self, utterances: Sequence[TokensToSpeak], between: Callable[[], object] | None = None
    ) -> list[torch.Tensor | ChatterboxError]: ...
    @overload
    def run(
        self, utterances: Sequence[ToSpeak], between: Callable[[], object] | None = None
    ) -> list[Spoken | ChatterboxError]: ...
    def run(self, utterances: Sequence[ToSpeak], between: Callable[[], object] | None = None) -> list[Any]:
        """Waveforms [samples], float32 on the CPU, or the error of an utterance that could not be spoken.

        The waveforms of a batch may share a block of memory: copy what is kept.

        At most `max_batch_size` utterances, or as many chunks, all of one step count. Where a batch fails, its
        utterances are tried one by one, so that the one at fault does not take the others with it.

        Args:
            between: called between the steps of the flow; it may raise `AbandonedError`.

        Raises:
            AbandonedError: of `between`.
        """
        try:
            return list(self.launch(utterances, between)())
        except AbandonedError:
            raise
        except Exception as error:
            if len(utterances) == 1:
                return [_as_own_error(error)]
        return [outcome for utterance in utterances for outcome in self.run([utterance], between)]

    def launch(
        self, utterances: Sequence[ToSpeak], between: Callable[[], object] | None = None
    ) -> Callable[[], Sequence[Spoken]]:
        """Give the device all the work for a batch; what is returned waits for it, in another thread if it is to.

        Nobody is tried alone: what fails, here or there, fails for the whole batch.
        """
        chunks = [utterance for utterance in utterances if isinstance(utterance, ChunkToSpeak)]
        if chunks:
            return self._render(chunks, between)
        return self._synthesize([own for own in utterances if isinstance(own, TokensToSpeak)], between)

    def _synthesize(
        self, utterances: Sequence[TokensToSpeak], between: Callable[[], object] | None
    ) -> Callable[[], list[torch.Tensor]]:
        requests = [
            S3GenRequest(
                speech_tokens=torch.tensor(utterance.speech_tokens, dtype=torch.int64),
                prompt=utterance.voice.prompt,
                noise=utterance.noise or self._noise(utterance),
            )
            for utterance in utterances
        ]
        wait = self.model.launch(requests, utterances[0].steps, between)
        return lambda: [
            self._heard(wave, len(own.speech_tokens), own.voice, own.unheard)
            for wave, own in zip(wait(), utterances, strict=True)
        ]

    def _render(
        self, chunks: Sequence[ChunkToSpeak], between: Callable[[], object] | None
    ) -> Callable[[], list[SpokenChunk]]:
        states = [
            self.model.start_stream(chunk.voice.prompt, chunk.seed) if chunk.before is None else chunk.before.state
            for chunk in chunks
        ]
        given = [
            StreamChunk(state, torch.tensor(chunk.tokens, dtype=torch.int64), chunk.rendered, chunk.last)
            for chunk, state in zip(chunks, states, strict=True)
        ]
        wait = self.model.launch_chunks(given, chunks[0].steps, between)
        return lambda: [
            SpokenChunk(
                self._heard(wave, state.rendered, chunk.voice, chunk.unheard) if chunk.last else wave, state, chunk.last
            )
            for chunk, (wave, state) in zip(chunks, wait(), strict=True)
        ]

    def _heard(self, wave: torch.Tensor, tokens: int, voice: Speaker, unheard: int) -> torch.Tensor:
        """The end of an utterance of so many tokens, without the audio of the last `unheard`; one is always heard."""
        if not unheard:
            return wave
        samples_per_frame = self.model.config.hift.samples_per_frame
        whole = self.model.frames(tokens, voice.prompt)[1] * samples_per_frame
        heard = max(1, tokens - unheard) * UPSAMPLING * samples_per_frame
        return wave[: len(wave) - max(0, whole - heard)]

    def _noise(self, utterance: TokensToSpeak) -> S3GenNoise:
        return self.model.draw_noise(utterance.seed, len(utterance.speech_tokens), utterance.voice.prompt)


def _most_beside_streams(lengths: Sequence[int]) -> int:
    """Frames of a batch where these wait."""
    least, most = _FRAMES_BESIDE_STREAMS
    return max(least, min(most, sum(lengths) // 2))


def _as_own_error(error: Exception) -> ChatterboxError:
    if isinstance(error, ChatterboxError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return GenerationError(f"S3Gen ran out of memory for this utterance; shorten the text or the batch ({error})")
    logger.error("S3Gen failed", exc_info=error)
    return GenerationError(f"S3Gen failed ({type(error).__name__}: {error})")
