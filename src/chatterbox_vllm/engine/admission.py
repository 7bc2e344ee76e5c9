"""Who is next at T3: requests take turns there, a piece each, as long as there is room."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from chatterbox_vllm.engine.at_s3gen import PiecesAtS3Gen
from chatterbox_vllm.engine.at_t3 import PiecesAtT3
from chatterbox_vllm.engine.job import Job
from chatterbox_vllm.engine.turns import Turns

# Of T3's places, how many must be free again before it takes more pieces. A step that takes a prompt in is no graph of
# decoding alone: with 128 places on an H200 it took 17 ms instead of 6, whether one prompt came or eight.
_SHARE_TAKEN_TOGETHER = 1 / 16
# Where requests come at any time and so many pieces are spoken, T3 takes others in at most every so many seconds: on an
# H200 a step with a prompt took 10 ms beside 64 of them, and one without 5.
_MANY_SPOKEN, _BETWEEN_PROMPTS = 64, 0.06


class Admission:
    """The queue before T3.

    Args:
        max_admitted: pieces in T3's hands.
        max_waiting: pieces that wait for S3Gen; with so many T3 gets no more.

    Attributes:
        reserved: places at T3 that are kept for requests that have none yet, so that a newcomer need not wait for a
            piece of a long text to end. None where nobody comes unexpectedly.
    """

    def __init__(self, at_t3: PiecesAtT3, at_s3gen: PiecesAtS3Gen, max_admitted: int, max_waiting: int):
        self.at_t3, self.at_s3gen = at_t3, at_s3gen
        self.max_admitted, self.max_waiting = max_admitted, max_waiting
        self.reserved = 0
        self._taken_together = max(1, int(max_admitted * _SHARE_TAKEN_TOGETHER))
        self._filled = False  # all places were taken, and few are free again
        self._took_in = -math.inf  # when T3 got a piece last
        self._turns: Turns[Job] = Turns()
        self._paused: set[int] = set()  # until their callers take what is ready

    def __len__(self) -> int:
        """Requests that wait for a turn."""
        return len(self._turns)

    def add(self, job: Job) -> None:
        """A request has a piece for T3: let it have a turn."""
        self._turns.add(job, job.request.priority)

    def resume(self, job: Job) -> None:
        """Let a request have its turn that was passed over because its caller had left too much untaken."""
        if job.serial in self._paused:
            self._paused.discard(job.serial)
            self.add(job)

    def drop(self, job: Job) -> None:
        """Forget a request."""
        self._paused.discard(job.serial)
        self._turns.drop(job, job.request.priority)

    @property
    def welcomes(self) -> bool:
        """Whether a newcomer would have a turn now."""
        return (self.reserved > 0 or not self._filled) and self._takes_in()

    def take(self, is_full: Callable[[Job], bool]) -> Iterator[Job]:
        """Those of whom T3 takes a piece now, one after the other; who takes a turn gives T3 the piece before the next.

        Args:
            is_full: whether a request's caller leaves too much untaken; it waits for `resume`.
        """
        if not self._takes_in():
            return
        places = self.max_admitted - self.reserved  # for those who have some already
        if len(self.at_t3) <= places - self._taken_together:
            self._filled = False
        passed_over: list[Job] = []
        while len(self.at_t3) < self.max_admitted and self.at_s3gen.waiting < self.max_waiting:
            job = self._turns.take() if self.reserved or not self._filled else None
            if job is None:
                break
            if is_full(job):
                self._paused.add(job.serial)
                continue
            if self._filled and job.live:
                passed_over.append(job)
                continue
            yield job
            self._took_in = time.monotonic()
            self._filled = self._filled or len(self.at_t3) >= places
        for job in reversed(passed_over):
            self._turns.add_first(job, job.request.priority)

    def _takes_in(self) -> bool:
        """Whether T3 is to take pieces in now, if it has room."""
        crowded = self.reserved > 0 and len(self.at_t3) >= _MANY_SPOKEN
        return not crowded or time.monotonic() >= self._took_in + _BETWEEN_PROMPTS
