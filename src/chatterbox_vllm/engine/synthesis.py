"""S3Gen beside T3: finished tokens wait here for a batch, are voiced and watermarked, and come back as audio.

On a GPU, batches run in a thread of their own on a CUDA stream of their own, so that neither stage waits for the other;
watermarks are made by further threads, each with its stream. On a CPU everything runs in turn, since one stage's work
would only slow the other's.
"""

from __future__ import annotations

import os
import queue
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND
from chatterbox_vllm.engine.s3gen_stage import S3GenStage, TokensToSpeak
from chatterbox_vllm.errors import ChatterboxError, GenerationError
from chatterbox_vllm.voices.voice import Voice

Outcome = torch.Tensor | ChatterboxError
_WATERMARK_THREADS = 4


class Voicing(Protocol):
    """What the scheduler needs of its S3Gen side. Segments are named by strings."""

    stage: S3GenStage

    def warm_up(self, voice: Voice, steps: int) -> None:
        """Do now what the first requests would wait for: compile kernels, record graphs, load the watermark."""

    def add(self, segment_id: str, utterance: TokensToSpeak) -> None: ...
    def drop(self, segment_ids: set[str]) -> None:
        """Forget segments; those in a running batch finish and their audio is thrown away."""

    def poll(self, patience: float) -> list[tuple[str, Outcome]]:
        """Start a batch if none runs; return what has finished, waiting up to `patience` seconds for the first."""

    @property
    def waiting(self) -> int:
        """Segments that no batch has taken yet."""

    @property
    def busy(self) -> bool:
        """Whether anything was added that has not come back."""

    def close(self) -> None: ...


class _Waiting:
    """Segments that wait for a batch, oldest first."""

    def __init__(self) -> None:
        self.entries: dict[str, TokensToSpeak] = {}

    def take(self, stage: S3GenStage) -> dict[str, TokensToSpeak]:
        """Remove and return the batch that `stage` chooses."""
        entries = list(self.entries.items())
        batch = dict(entries[i] for i in stage.choose([utterance for _, utterance in entries]))
        for segment_id in batch:
            del self.entries[segment_id]
        return batch


class InlineVoicing:
    """Voices one batch at each poll, in the caller's thread."""

    def __init__(self, stage: S3GenStage, watermarker: Watermarker | None):
        self.stage = stage
        self.watermarker = watermarker
        self._waiting = _Waiting()

    def warm_up(self, voice: Voice, steps: int) -> None:
        """Nothing is compiled on a CPU."""

    def add(self, segment_id: str, utterance: TokensToSpeak) -> None:
        self._waiting.entries[segment_id] = utterance

    def drop(self, segment_ids: set[str]) -> None:
        for segment_id in segment_ids:
            self._waiting.entries.pop(segment_id, None)

    def poll(self, patience: float) -> list[tuple[str, Outcome]]:
        if not self._waiting.entries:
            return []
        batch = self._waiting.take(self.stage)
        outcomes = self.stage.run(list(batch.values()))
        return [(key, _watermarked(self.watermarker, o)) for key, o in zip(batch, outcomes, strict=True)]

    @property
    def waiting(self) -> int:
        return len(self._waiting.entries)

    @property
    def busy(self) -> bool:
        return bool(self._waiting.entries)

    def close(self) -> None:
        self._waiting.entries.clear()


class ThreadedVoicing:
    """Voices batches in a thread with a CUDA stream; watermarks in others."""

    def __init__(self, stage: S3GenStage, watermarker: Watermarker | None, device: torch.device):
        self.stage = stage
        self.watermarker = watermarker
        self.device = device
        self._waiting = _Waiting()
        self._out: set[str] = set()  # taken by a batch and not back
        self._dropped: set[str] = set()
        self._finished: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()
        self._voicer = ThreadPoolExecutor(1, "chatterbox-s3gen", initializer=self._enter_stream)
        self._batch: Future[None] | None = None
        threads = min(_WATERMARK_THREADS, os.cpu_count() or 1)
        # Streams of high priority, which nobody else uses: PyTorch deals its 32 of the normal kind out again and again,
        # and work on one that a graph is being recorded on would become part of the graph.
        self._markers = ThreadPoolExecutor(
            threads, "chatterbox-watermark", initializer=self._enter_stream, initargs=(-1,)
        )

    def _enter_stream(self, priority: int = 0) -> None:
        torch.cuda.set_device(self.device)
        torch.cuda.set_stream(torch.cuda.Stream(self.device, priority=priority))

    def warm_up(self, voice: Voice, steps: int) -> None:
        """In the thread that will do the work, with utterances of 5 and 10 s, alone and as many as a batch holds."""

        def speak() -> None:
            for seconds in (5, 10):
                tokens = (0,) * (seconds * TOKENS_PER_SECOND)
                trial = TokensToSpeak(tokens, voice, steps, seed=0)
                for count in {1, len(self.stage.choose([trial] * self.stage.max_batch_size))}:
                    for outcome in self.stage.run([trial] * count):
                        if isinstance(outcome, Exception):
                            raise outcome
            _watermarked(self.watermarker, outcome)

        self._voicer.submit(speak).result()

    def add(self, segment_id: str, utterance: TokensToSpeak) -> None:
        self._waiting.entries[segment_id] = utterance

    def drop(self, segment_ids: set[str]) -> None:
        for segment_id in segment_ids:
            if self._waiting.entries.pop(segment_id, None) is None and segment_id in self._out:
                self._dropped.add(segment_id)

    def poll(self, patience: float) -> list[tuple[str, Outcome]]:
        if self._waiting.entries and (self._batch is None or self._batch.done()):
            batch = self._waiting.take(self.stage)
            self._out.update(batch)
            self._batch = self._voicer.submit(self._run, batch)
        finished: list[tuple[str, Outcome]] = []
        while self._out:
            try:
                segment_id, outcome = self._finished.get(timeout=0 if finished else patience)
            except queue.Empty:
                break
            self._out.discard(segment_id)
            if segment_id in self._dropped:
                self._dropped.discard(segment_id)
            else:
                finished.append((segment_id, outcome))
        return finished

    def _run(self, batch: dict[str, TokensToSpeak]) -> None:
        try:
            outcomes = self.stage.run(list(batch.values()))
        except Exception as error:  # nothing may be lost, whatever went wrong
            outcomes = [GenerationError(f"S3Gen failed: {error}")] * len(batch)
        for segment_id, outcome in zip(batch, outcomes, strict=True):
            self._markers.submit(self._mark, segment_id, outcome)

    def _mark(self, segment_id: str, outcome: Outcome) -> None:
        try:
            outcome = _watermarked(self.watermarker, outcome)
        except Exception as error:
            outcome = GenerationError(f"the watermark failed: {error}")
        self._finished.put((segment_id, outcome))

    @property
    def waiting(self) -> int:
        return len(self._waiting.entries)

    @property
    def busy(self) -> bool:
        return bool(self._waiting.entries or self._out)

    def close(self) -> None:
        self._waiting.entries.clear()
        self._voicer.shutdown(wait=True, cancel_futures=True)
        self._markers.shutdown(wait=True, cancel_futures=True)


def _watermarked(watermarker: Watermarker | None, outcome: Outcome) -> Outcome:
    if watermarker is None or not isinstance(outcome, torch.Tensor):
        return outcome
    return torch.from_numpy(watermarker.apply(outcome.numpy()))


def make_voicing(stage: S3GenStage, watermarker: Watermarker | None, device: torch.device) -> Voicing:
    """Threaded on CUDA, inline on a CPU."""
    return ThreadedVoicing(stage, watermarker, device) if device.type == "cuda" else InlineVoicing(stage, watermarker)
