"""First sounds that are held back for a moment where many listen, so that what follows is there in time.

A first chunk is short, so that it is there soon: a quarter of a second is heard while the second one is made. Where
many listen the second one takes longer than that, and its listener would hear a gap. A receiver of speech over a
network has the same trouble and delays what it plays by as much as packets have lately been late. So does this: a first
sound waits for as long as most second ones have lately needed, and no longer than until its own is there.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.engine.job import Job
from chatterbox_vllm.engine.request import AudioChunk

_REMEMBERED = 10.0  # seconds
_FEWEST = 32  # streams in that time; with fewer there is no crowd
_MOST = 256  # that are remembered
_IN_TIME = 0.95  # of the second sounds
_LONGEST = 1.0  # seconds; an engine that is later than this does not keep up, and waiting would not help


@dataclass
class _First:
    """A listener's first sound.

    Attributes:
        ready: when it was there (`time.monotonic`).
        lasts: seconds.
    """

    job: Job
    ready: float
    lasts: float


class Playout:
    """Passes on what streams have to say; not for several threads.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._firsts: dict[int, _First] = {}  # of streams without a second sound yet, by number
        self._held: dict[int, tuple[float, list[AudioChunk]]] = {}  # until when, and what
        self._needed: deque[tuple[float, float]] = deque(maxlen=_MOST)  # when, and how long a first sound should wait

    @property
    def holding(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held)

    def left(self) -> float:
        """Seconds until something is due that is held back; infinite where nothing is."""
        return min((until for until, _ in self._held.values()), default=math.inf) - self._clock()

    def pass_on(self, job: Job, chunks: list[AudioChunk]) -> list[AudioChunk]:
        """What of a stream's audio goes out now, of these chunks that have just come and of what was held back."""
        if job.stream is None or not chunks:
            return chunks
        now = self._clock()
        if chunks[0].start > 0:
            first = self._firsts.pop(job.serial, None)
            if first is not None:
                self._needed.append((now, max(0.0, now - first.ready - first.lasts)))
            return self.release(job) + chunks
        self._firsts[job.serial] = _First(job, now, sum(len(chunk.audio) for chunk in chunks) / SAMPLE_RATE)
        delay = self._delay(now)
        if delay > 0:
            self._held[job.serial] = now + delay, chunks
            job.stream.first_heard = now + delay
            return []
        return chunks

    def due(self) -> list[AudioChunk]:
        """What was held back long enough."""
        if not self._held:
            return []
        now = self._clock()
        ended = [serial for serial, (until, _) in self._held.items() if until <= now]
        return [chunk for serial in ended for chunk in self.release(self._firsts[serial].job)]

    def release(self, job: Job) -> list[AudioChunk]:
        """What is held back of a request, which goes out now."""
        _, chunks = self._held.pop(job.serial, (0.0, []))
        if chunks and job.stream is not None:
            job.first_audio = job.stream.first_heard = self._clock()
        return chunks

    def forget(self, job: Job) -> list[AudioChunk]:
        """A request is over: what is held back of it."""
        chunks = self.release(job)
        self._firsts.pop(job.serial, None)
        return chunks

    def _delay(self, now: float) -> float:
        """What `_IN_TIME` of the second sounds lately needed; nothing where there were few."""
        while self._needed and self._needed[0][0] < now - _REMEMBERED:
            self._needed.popleft()
        if len(self._needed) < _FEWEST:
            return 0.0
        lately = sorted(needed for _, needed in self._needed)
        return min(_LONGEST, lately[math.ceil(_IN_TIME * len(lately)) - 1])
