"""First sounds that are held back for a moment where many listen, so that what follows is there in time.

A first chunk is short, so that it is there soon: a quarter of a second is heard while the second one is made. Where
many listen the second one takes longer than that, or the third longer than the first two are heard, and there would be
a gap. A receiver of speech over a network has the same trouble and delays what it plays by as much as packets have
lately been late. So does this: a first sound waits for as long as most second ones have lately needed, unless its own
is there before, and for as long as most later ones have needed in any case.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.engine.job import Job
from chatterbox_vllm.engine.request import AudioChunk

_REMEMBERED = 10.0  # seconds
_FEWEST = 32  # streams in that time; with fewer there is no crowd
_MOST = 256  # that are remembered
_BEGINNING = 10.0  # seconds of a stream; what is late further on may be so because its caller has not taken enough
_IN_TIME = 0.95  # of the streams
_LONGEST = 1.0  # seconds


class _Lateness:
    """How long first sounds should have waited lately, for one kind of what comes after them."""

    def __init__(self) -> None:
        self._needed: dict[int, tuple[float, float]] = {}  # when it was noted, in order, and seconds; by stream

    def note(self, serial: int, now: float, needed: float) -> None:
        """So long a stream's first sound should have waited, and longer if that was said before."""
        _, before = self._needed.pop(serial, (now, 0.0))
        self._needed[serial] = now, max(before, needed)

    def of_most(self, now: float) -> float:
        """Seconds with which `_IN_TIME` of the streams would not have waited; 0 where there were few."""
        for serial in list(self._needed):
            if self._needed[serial][0] >= now - _REMEMBERED and len(self._needed) <= _MOST:
                break
            del self._needed[serial]
        if len(self._needed) < _FEWEST:
            return 0.0
        lately = sorted(needed for _, needed in self._needed.values())
        return min(_LONGEST, lately[math.ceil(_IN_TIME * len(lately)) - 1])


@dataclass
class _Held:
    """What is held back of a stream.

    Attributes:
        until: when it goes out (`time.monotonic`).
        at_least: the same, if the second sound is there.
    """

    job: Job
    chunks: list[AudioChunk]
    until: float
    at_least: float


class Playout:
    """Passes on what streams have to say; not for several threads.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._ready: dict[int, float] = {}  # when a stream's first sound was there, by number
        self._followed: set[int] = set()  # streams of which a second one is there
        self._held: dict[int, _Held] = {}
        self._second, self._later = _Lateness(), _Lateness()

    @property
    def holding(self) -> bool:
        """Whether anything is held back."""
        return bool(self._held)

    def left(self) -> float:
        """Seconds until something is due that is held back; infinite where nothing is."""
        return min((held.until for held in self._held.values()), default=math.inf) - self._clock()

    def pass_on(self, job: Job, chunks: list[AudioChunk]) -> list[AudioChunk]:
        """What of a stream's audio goes out now, of these chunks that have just come and of what was held back."""
        if job.stream is None or not chunks:
            return chunks
        now = self._clock()
        if chunks[0].start > 0:
            self._note(job.serial, now, chunks[0].start / SAMPLE_RATE)
            return self._follow(job, now, chunks)
        self._ready[job.serial] = now
        later = self._later.of_most(now)
        held = _Held(job, chunks, now + max(later, self._second.of_most(now)), now + later)
        if held.until <= now:
            return chunks
        self._held[job.serial] = held
        job.stream.first_heard = held.until
        return []

    def due(self) -> list[AudioChunk]:
        """What was held back long enough."""
        if not self._held:
            return []
        now = self._clock()
        ended = [held.job for held in self._held.values() if held.until <= now]
        return [chunk for job in ended for chunk in self._release(job)]

    def forget(self, job: Job) -> list[AudioChunk]:
        """A request is over: what is held back of it."""
        self._ready.pop(job.serial, None)
        self._followed.discard(job.serial)
        return self._release(job)

    def _note(self, serial: int, now: float, before: float) -> None:
        """A sound has come that is not a stream's first, behind so many seconds."""
        needed = now - self._ready[serial] - before
        if serial not in self._followed:
            self._followed.add(serial)
            self._second.note(serial, now, needed)
        elif before <= _BEGINNING:
            self._later.note(serial, now, needed)

    def _follow(self, job: Job, now: float, chunks: list[AudioChunk]) -> list[AudioChunk]:
        """What goes out now that these have come behind a stream's first sound."""
        held = self._held.get(job.serial)
        if held is None:
            return chunks
        held.chunks += chunks
        assert job.stream is not None  # nothing else is held back
        job.stream.first_heard = held.until = held.at_least
        return self._release(job) if held.until <= now else []

    def _release(self, job: Job) -> list[AudioChunk]:
        """What is held back of a request, which goes out now."""
        held = self._held.pop(job.serial, None)
        if held is None:
            return []
        assert job.stream is not None  # nothing else is held back
        job.first_audio = job.stream.first_heard = self._clock()
        return held.chunks
