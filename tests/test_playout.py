"""First sounds that are held back where second ones have been late."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatterbox_vllm.engine.chunks import ChunkPlan
from chatterbox_vllm.engine.playout import Playout
from chatterbox_vllm.engine.request import AudioChunk, Delivery, SpeechParameters, SpeechRequest, SpeechResult

from .fakes import END, EngineBeside, a_voice

RATE = 24_000
FIRST = 0.25  # seconds of a first sound


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Listeners:
    """Streams of a first sound and a second, by a clock that is set by hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.playout = Playout(self.clock)
        self.serial = 0

    def first(self) -> tuple[Any, list[AudioChunk]]:
        """A new stream's first sound comes: the stream, and what goes out."""
        self.serial += 1
        job = SimpleNamespace(serial=self.serial, stream=SimpleNamespace(first_heard=self.clock.now), first_audio=0.0)
        return job, self.playout.pass_on(job, [self.chunk(job, 0.0)])

    def second(self, job: Any) -> list[AudioChunk]:
        return self.playout.pass_on(job, [self.chunk(job, FIRST)])

    def third(self, job: Any) -> list[AudioChunk]:
        return self.playout.pass_on(job, [self.chunk(job, 2 * FIRST)])

    def chunk(self, job: Any, at: float) -> AudioChunk:
        return AudioChunk(job.serial, "", torch.zeros(round(FIRST * RATE)), round(at * RATE))

    def crowd(self, late: float, count: int = 40) -> None:
        """As many streams, whose second sounds are late by so many seconds where nothing is held back."""
        for _ in range(count):
            job, _ = self.first()
            self.clock.now += FIRST + late
            self.second(job)
            self.clock.now += 0.1 - FIRST - late  # ten a second, side by side


@pytest.fixture
def listeners() -> Listeners:
    return Listeners()


def test_who_listens_alone_waits_for_nothing(listeners: Listeners) -> None:
    listeners.crowd(late=0.3, count=20)
    _, out = listeners.first()
    assert len(out) == 1 and not listeners.playout.holding


def test_in_a_crowd_whose_second_sounds_come_in_time_nobody_waits(listeners: Listeners) -> None:
    listeners.crowd(late=-0.05, count=98)
    listeners.crowd(late=0.2, count=2)
    _, out = listeners.first()
    assert len(out) == 1


def test_a_first_sound_waits_as_long_as_second_ones_were_late(listeners: Listeners) -> None:
    listeners.crowd(late=0.3)
    job, out = listeners.first()
    assert out == [] and listeners.playout.holding and listeners.playout.left() == pytest.approx(0.3)
    assert job.stream.first_heard == pytest.approx(listeners.clock.now + 0.3), "S3Gen goes by when it will be heard"
    listeners.clock.now += 0.2
    assert listeners.playout.due() == []
    listeners.clock.now += 0.11
    (chunk,) = listeners.playout.due()
    assert chunk.serial == job.serial and job.first_audio == job.stream.first_heard == listeners.clock.now
    assert not listeners.playout.holding and listeners.playout.left() == float("inf")
    assert len(listeners.second(job)) == 1


def test_a_first_sound_goes_out_with_the_second_and_before_it(listeners: Listeners) -> None:
    listeners.crowd(late=0.3)
    job, out = listeners.first()
    listeners.clock.now += 0.1
    assert out == [] and [chunk.start for chunk in listeners.second(job)] == [0, round(FIRST * RATE)]
    assert not listeners.playout.holding


def test_a_first_sound_waits_for_later_ones_whether_the_second_is_there_or_not(listeners: Listeners) -> None:
    for _ in range(40):
        job, _ = listeners.first()
        listeners.clock.now += 0.1
        listeners.second(job)
        listeners.clock.now += 2 * FIRST - 0.1 + 0.3
        listeners.third(job)
        listeners.playout.forget(job)
        listeners.clock.now += 0.1 - 2 * FIRST - 0.3
    job, out = listeners.first()
    assert out == [] and listeners.playout.left() == pytest.approx(0.3)
    listeners.clock.now += 0.1
    assert listeners.second(job) == [] and job.stream.first_heard == pytest.approx(listeners.clock.now + 0.2)
    listeners.clock.now += 0.21
    assert [chunk.start for chunk in listeners.playout.due()] == [0, round(FIRST * RATE)]


def test_what_is_late_far_into_a_stream_holds_nobody_back(listeners: Listeners) -> None:
    for _ in range(40):
        job, _ = listeners.first()
        listeners.second(job)
        listeners.clock.now += 60
        listeners.playout.pass_on(job, [listeners.chunk(job, 20.0)])
        listeners.clock.now -= 60
    _, out = listeners.first()
    assert len(out) == 1


def test_nobody_waits_any_more_when_the_crowd_has_gone(listeners: Listeners) -> None:
    listeners.crowd(late=0.3)
    listeners.clock.now += 11
    _, out = listeners.first()
    assert len(out) == 1


def test_nobody_waits_longer_than_a_second(listeners: Listeners) -> None:
    listeners.crowd(late=30.0)
    listeners.first()
    assert listeners.playout.left() == pytest.approx(1.0)


def test_what_is_held_back_of_a_request_that_is_over_goes_out(listeners: Listeners) -> None:
    listeners.crowd(late=0.3)
    job, _ = listeners.first()
    assert [chunk.serial for chunk in listeners.playout.forget(job)] == [job.serial]
    listeners.clock.now += 1
    assert listeners.playout.due() == [] == listeners.playout.forget(job)


class Crowded:
    """A scheduler that holds first sounds back for half a minute, with S3Gen in a thread as on a card."""

    def __init__(self, tokens: int) -> None:
        plan = ChunkPlan(first=(10, 30), later=(30,))
        self.engine = EngineBeside(lambda rows, sampling: [*range(100, 100 + tokens), END], plan)
        self.scheduler, self.may = self.engine.scheduler, self.engine.may
        self.scheduler.playout._second.of_most = lambda now: 30.0
        request = SpeechRequest("Hello.", a_voice(), SpeechParameters(max_tokens=200, seed=1))
        self.serial = self.scheduler.submit(request, delivery=Delivery.STREAM)

    def until(self, done: Any) -> list[Any]:
        """What comes out until `done` says so of all of it."""
        events: list[Any] = []
        for _ in range(2000):
            if done(events):
                return events
            events += self.scheduler.step(0.01)
        raise AssertionError(f"only {events} came")


def test_a_scheduler_passes_a_first_sound_on_with_the_second() -> None:
    crowded = Crowded(tokens=60)
    try:
        crowded.may.release(1)
        crowded.until(lambda events: crowded.scheduler.playout.holding)
        assert not crowded.scheduler.blocked
        crowded.may.release(100)
        events = crowded.until(lambda events: isinstance(events[-1], SpeechResult) if events else False)
        starts = [event.start for event in events[:-1]]
        assert starts == sorted(starts) and starts[0] == 0 and len(starts) == 3 and events[-1].error is None
    finally:
        crowded.engine.close()


def test_a_text_of_one_chunk_is_not_held_back() -> None:
    crowded = Crowded(tokens=8)
    try:
        crowded.may.release(100)
        events = crowded.until(lambda events: len(events) == 2)
        assert isinstance(events[0], AudioChunk) and isinstance(events[1], SpeechResult)
    finally:
        crowded.engine.close()


def test_a_result_says_when_its_first_sound_went_out() -> None:
    crowded = Crowded(tokens=30)
    try:
        crowded.scheduler.playout._later.of_most = lambda now: 30.0
        crowded.may.release(1)
        crowded.until(lambda events: crowded.scheduler.playout.holding)
        time.sleep(0.5)
        crowded.may.release(100)
        *chunks, result = crowded.until(lambda events: isinstance(events[-1], SpeechResult) if events else False)
        assert len(chunks) == 2 and result.error is None and result.timings.first_audio >= 0.5
    finally:
        crowded.engine.close()


def test_an_aborted_text_leaves_nothing_held_back() -> None:
    crowded = Crowded(tokens=60)
    try:
        crowded.may.release(1)
        crowded.until(lambda events: crowded.scheduler.playout.holding)
        crowded.scheduler.abort(crowded.serial)
        assert not crowded.scheduler.playout.holding
        *chunks, result = crowded.scheduler.collect()
        assert [chunk.start for chunk in chunks] == [0] and result.error is not None
    finally:
        crowded.engine.close()
