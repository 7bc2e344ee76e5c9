"""S3Gen beside T3: finished tokens wait here for a batch, are spoken and watermarked, and come back as audio.

On a GPU, a thread of S3Gen's own launches batches on a CUDA stream of its own, so that neither stage waits for the
other. It takes the next batch from those that wait as soon as the vocoder, the last part, is at work on the one before,
so that the card need not wait for the host between two of them. Another thread waits for what comes of a batch, and
further ones, each with its stream, make watermarks. T3's kernels come first on the card, then the watermarks of chunks,
then S3Gen's kernels, and last the watermarks of whole utterances. On a CPU everything runs in turn, since one stage's
work would only slow the other's.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.audio.watermark_stream import StreamPart, make_plans, mark_parts
from chatterbox_vllm.caches.heap import Heap
from chatterbox_vllm.cuda.streams import Urgency, new_stream
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND
from chatterbox_vllm.engine.s3gen_stage import AbandonedError, S3GenStage
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, Spoken, SpokenChunk, TokensToSpeak, ToSpeak
from chatterbox_vllm.errors import ChatterboxError, GenerationError
from chatterbox_vllm.voices.hearing import Speaker

logger = logging.getLogger(__name__)

Outcome = Spoken | ChatterboxError
_Told = tuple[str, ToSpeak, Outcome]  # a segment, what was to be spoken, and what came of it
_WATERMARK_THREADS = 4
# Samples of parts of streams, those before them that the watermark sees included: first ones, and from the second on.
_FIRST_PARTS, _LATER_PARTS = (5760, 5760), (29_040, 135_600)
_CHUNK_THREADS = 2
_PARTS_TOGETHER = 4  # often; more of them make their plans when they first come
# Utterances in S3Gen's batches, at least, where the plans are worth the memory in which they are made.
_MANY_SPOKEN = 16


class Synthesis(Protocol):
    """What the scheduler needs of its S3Gen side. Segments are named by strings."""

    stage: S3GenStage
    works_in_poll: bool  # in the caller's thread, and not beside it

    def warm_up(self, voice: Speaker, steps: int) -> None:
        """Do now what the first requests would wait for: compile kernels, record graphs, load the watermark."""

    def add(self, segments: Mapping[str, ToSpeak]) -> None:
        """Take in segments together, so that a batch that begins now is chosen among all of them."""

    def drop(self, segment_ids: set[str]) -> None:
        """Forget segments; those in a running batch finish and their audio is thrown away."""

    def poll(self, patience: float, between: Callable[[], object] | None = None) -> list[tuple[str, Outcome]]:
        """What has finished, waiting up to `patience` seconds for the first.

        Args:
            between: called now and then where the work is done here; it may drop what is being worked on.
        """

    @property
    def waiting(self) -> int:
        """Segments that no batch has taken yet."""

    @property
    def busy(self) -> bool:
        """Whether anything was added that has not come back."""

    @property
    def ready(self) -> bool:
        """Whether `poll` has something to give without working for it."""

    def close(self) -> None: ...


class _Waiting:
    """Segments that wait for a batch, oldest first."""

    def __init__(self) -> None:
        self.entries: dict[str, ToSpeak] = {}

    def take(self, stage: S3GenStage) -> dict[str, ToSpeak]:
        """Remove and return the batch that `stage` chooses; nothing where nobody waits."""
        entries = list(self.entries.items())
        batch = dict(entries[i] for i in stage.choose([utterance for _, utterance in entries]))
        for segment_id in batch:
            del self.entries[segment_id]
        return batch


class InlineSynthesis:
    """Speaks one batch at each poll, in the caller's thread."""

    works_in_poll = True

    def __init__(self, stage: S3GenStage, watermarker: Watermarker | None):
        self.stage = stage
        self.watermarker = watermarker
        self._waiting = _Waiting()
        self._wanted: set[str] = set()  # of the batch in work
        self._heap = Heap()

    def warm_up(self, voice: Speaker, steps: int) -> None:
        """Nothing is compiled on a CPU."""

    def add(self, segments: Mapping[str, ToSpeak]) -> None:
        self._waiting.entries.update(segments)

    def drop(self, segment_ids: set[str]) -> None:
        self._wanted -= segment_ids
        for segment_id in segment_ids:
            self._waiting.entries.pop(segment_id, None)

    def poll(self, patience: float, between: Callable[[], object] | None = None) -> list[tuple[str, Outcome]]:
        batch = self._waiting.take(self.stage)
        if not batch:
            return []
        self._wanted = set(batch)

        def meanwhile() -> None:
            if between is not None:
                between()
            if not self._wanted:
                raise AbandonedError

        try:
            outcomes = self.stage.run(list(batch.values()), meanwhile)
        except AbandonedError:
            return []
        told = _told(batch, outcomes)
        # Each by itself: a segment's audio is not to depend on the last bit on what is spoken beside it.
        marked = [audio for one in told if one[0] in self._wanted for audio in _marked(self.watermarker, [one])]
        self._heap.give_back(done=not self._waiting.entries)
        return marked

    @property
    def waiting(self) -> int:
        return len(self._waiting.entries)

    @property
    def busy(self) -> bool:
        return bool(self._waiting.entries)

    @property
    def ready(self) -> bool:
        return False

    def close(self) -> None:
        self._waiting.entries.clear()


class ThreadedSynthesis:
    """Speaks batches in a thread with a CUDA stream; watermarks in others. On other devices it has threads alone."""

    works_in_poll = False

    def __init__(self, stage: S3GenStage, watermarker: Watermarker | None, device: torch.device):
        self.stage = stage
        self.watermarker = watermarker
        self.device = device
        self._lock = threading.Lock()  # around the next three
        self._waiting = _Waiting()
        self._out: set[str] = set()  # taken by a batch and not back
        self._dropped: set[str] = set()
        self._finished: queue.SimpleQueue[list[tuple[str, Outcome]]] = queue.SimpleQueue()
        self._at_vocoder = torch.cuda.Event(blocking=True) if device.type == "cuda" else None  # the last batch launched
        self._speaker = ThreadPoolExecutor(1, "chatterbox-s3gen", self._enter_stream, (Urgency.MIDDLE,))
        self._fetcher = ThreadPoolExecutor(1, "chatterbox-spoken")
        threads = min(_WATERMARK_THREADS, os.cpu_count() or 1)
        self._markers = ThreadPoolExecutor(threads, "chatterbox-watermark", self._enter_stream, (Urgency.LOWEST,))
        # Somebody listens, and a batch of S3Gen's fills the card.
        self._chunk_markers = ThreadPoolExecutor(
            _CHUNK_THREADS, "chatterbox-chunks", self._enter_stream, (Urgency.SOON,)
        )
        self._first_markers = ThreadPoolExecutor(1, "chatterbox-first", self._enter_stream, (Urgency.SOON,))

    def _enter_stream(self, urgency: Urgency) -> None:
        stream = new_stream(self.device, urgency)
        if stream is not None:
            torch.cuda.set_stream(stream)  # of its device, which becomes the thread's

    def warm_up(self, voice: Speaker, steps: int) -> None:
        """In the thread that will do the work: all graphs, then utterances of 10 s, alone and as many as fit."""

        def speak() -> None:
            self.stage.record_graphs(voice)
            tokens = (0,) * (10 * TOKENS_PER_SECOND)
            whole = TokensToSpeak(tokens, voice, steps, seed=0)
            chunk = ChunkToSpeak(tokens[:25], 22, False, voice, steps, seed=0)
            most = self.stage.max_batch_size
            together = len(self.stage.choose([whole] * most))
            trials: list[list[ToSpeak]] = [[whole], [whole] * together, [chunk], [chunk] * most]
            for trial in trials:
                outcomes = self.stage.run(trial)
                for outcome in outcomes:
                    if isinstance(outcome, Exception):
                        raise outcome
            _watermarked(self.watermarker, [("", own, outcome) for own, outcome in zip(trial, outcomes, strict=True)])

        self._speaker.submit(speak).result()
        for made in self._make_plans():
            made.result()

    def _make_plans(self) -> list[Future[None]]:
        """Let the threads that mark parts of streams get to know their shapes, where many are spoken at once."""
        watermarker = self.watermarker
        if watermarker is None or self.stage.max_batch_size < _MANY_SPOKEN:
            return []
        watermarker.load()
        together = threading.Barrier(_CHUNK_THREADS)  # so that each thread takes one

        def later() -> None:
            together.wait()
            make_plans(watermarker, *_LATER_PARTS, _PARTS_TOGETHER)

        first = self._first_markers.submit(make_plans, watermarker, *_FIRST_PARTS, _PARTS_TOGETHER)
        return [first, *(self._chunk_markers.submit(later) for _ in range(_CHUNK_THREADS))]

    def add(self, segments: Mapping[str, ToSpeak]) -> None:
        if not segments:
            return
        with self._lock:
            self._waiting.entries.update(segments)
        self._speaker.submit(self._speak_next)  # finds nothing to do where an earlier batch has taken all of them

    def drop(self, segment_ids: set[str]) -> None:
        with self._lock:
            for segment_id in segment_ids:
                if self._waiting.entries.pop(segment_id, None) is None and segment_id in self._out:
                    self._dropped.add(segment_id)

    def poll(self, patience: float, between: Callable[[], object] | None = None) -> list[tuple[str, Outcome]]:
        finished: list[tuple[str, Outcome]] = []
        while self.busy:
            try:
                told = self._finished.get(timeout=0 if finished else patience)
            except queue.Empty:
                break
            names = {segment_id for segment_id, _ in told}
            with self._lock:
                self._out -= names
                dropped = self._dropped & names
                self._dropped -= names
            finished += [one for one in told if one[0] not in dropped]
        return finished

    def _speak_next(self) -> None:
        """Launch the next batch."""
        batch: dict[str, ToSpeak] = {}
        failed = False
        try:
            if self._at_vocoder is not None:
                self._at_vocoder.synchronize()
            with self._lock:
                batch = self._waiting.take(self.stage)
                self._out.update(batch)
            if not batch:
                return
            self._fetcher.submit(self._fetch, batch, self.stage.launch(list(batch.values()), self._note_progress))
        except Exception as error:  # nothing may be lost, whatever went wrong
            failed = True
            if not batch:
                logger.exception("S3Gen failed")
                self._give_up(error)
        if failed and batch:  # here, where the error no longer holds the memory of what it ended
            self._speak_apart(batch)
        with self._lock:
            if self._waiting.entries:
                self._speaker.submit(self._speak_next)

    def _note_progress(self) -> None:
        """Before each part of a batch; the last is the vocoder."""
        if self._at_vocoder is not None:
            self._at_vocoder.record()

    def _fetch(self, batch: dict[str, ToSpeak], wait: Callable[[], Sequence[Spoken]]) -> None:
        try:
            outcomes = wait()
        except Exception:
            self._speaker.submit(self._speak_apart, batch)
        else:
            self._have_marked(_told(batch, outcomes))

    def _speak_apart(self, batch: dict[str, ToSpeak]) -> None:
        """What has failed together, so that the one at fault does not take the others with it."""
        outcomes = [outcome for own in batch.values() for outcome in self.stage.run([own])]
        self._have_marked(_told(batch, outcomes))

    def _give_up(self, error: Exception) -> None:
        """On all that wait."""
        with self._lock:
            batch, self._waiting.entries = self._waiting.entries, {}
            self._out.update(batch)
        failure = GenerationError(f"S3Gen failed ({type(error).__name__}: {error})")
        self._have_marked(_told(batch, [failure] * len(batch)))

    def _have_marked(self, told: list[_Told]) -> None:
        """Let other threads mark what was told of a batch.

        Chunks are short and many of one length: together they take a few launches in place of a few for each. The first
        of an utterance go by themselves, so that who has heard nothing yet does not wait for longer ones.
        """
        first, later = [], []
        for one in told:
            _, own, outcome = one
            if not isinstance(outcome, SpokenChunk):
                self._markers.submit(self._mark, [one])
            elif isinstance(own, ChunkToSpeak) and own.before is None:
                first.append(one)
            else:
                later.append(one)
        for threads, chunks in ((self._first_markers, first), (self._chunk_markers, later)):
            if chunks:
                threads.submit(self._mark, chunks)

    def _mark(self, told: list[_Told]) -> None:
        self._finished.put(_marked(self.watermarker, told, few_shapes=True))

    @property
    def waiting(self) -> int:
        return len(self._waiting.entries)

    @property
    def busy(self) -> bool:
        with self._lock:
            return bool(self._waiting.entries or self._out)

    @property
    def ready(self) -> bool:
        return not self._finished.empty()

    def close(self) -> None:
        with self._lock:
            self._waiting.entries.clear()
        for threads in (self._speaker, self._fetcher, self._markers, self._chunk_markers, self._first_markers):
            threads.shutdown(wait=True, cancel_futures=True)


def _told(batch: Mapping[str, ToSpeak], outcomes: Sequence[Outcome]) -> list[_Told]:
    return [(key, own, outcome) for (key, own), outcome in zip(batch.items(), outcomes, strict=True)]


def _marked(
    watermarker: Watermarker | None, told: Sequence[_Told], few_shapes: bool = False
) -> list[tuple[str, Outcome]]:
    """`_watermarked`, with an error in the place of what cannot be marked."""
    try:
        return _watermarked(watermarker, told, few_shapes)
    except Exception as error:
        logger.exception("the watermark failed")
        failure = GenerationError(f"the watermark failed ({type(error).__name__}: {error})")
        return [(key, failure) for key, _, _ in told]


def _watermarked(
    watermarker: Watermarker | None, told: Sequence[_Told], few_shapes: bool = False
) -> list[tuple[str, Outcome]]:
    """The waveforms in memory of their own, marked where there is a watermarker; an error as it is."""
    outcomes = {key: _whole(watermarker, outcome) for key, _, outcome in told}
    chunks = [
        (key, chunk, chunk.heard if own.before is None else own.before.heard)
        for key, own, chunk in told
        if isinstance(chunk, SpokenChunk) and isinstance(own, ChunkToSpeak)
    ]
    if watermarker is None:
        outcomes |= {key: replace(chunk, audio=chunk.audio.clone()) for key, chunk, _ in chunks}
    else:
        parts = [StreamPart(before, chunk.audio.numpy(), chunk.last) for _, chunk, before in chunks]
        for (key, chunk, _), (audio, heard) in zip(chunks, mark_parts(watermarker, parts, few_shapes), strict=True):
            outcomes[key] = replace(chunk, audio=torch.from_numpy(audio), heard=heard)
    return list(outcomes.items())


def _whole(watermarker: Watermarker | None, outcome: Outcome) -> Outcome:
    if not isinstance(outcome, torch.Tensor):
        return outcome
    return outcome.clone() if watermarker is None else torch.from_numpy(watermarker.apply(outcome.numpy()))


def make_synthesis(stage: S3GenStage, watermarker: Watermarker | None, device: torch.device) -> Synthesis:
    """Threaded on CUDA, inline on a CPU."""
    if device.type == "cuda":
        return ThreadedSynthesis(stage, watermarker, device)
    return InlineSynthesis(stage, watermarker)
