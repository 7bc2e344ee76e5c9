"""Which stage waits for the other where both could work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chatterbox_vllm import AudioChunk, SpeechParameters, SpeechRequest, Voice
from chatterbox_vllm.engine.chunks import ChunkPlan
from chatterbox_vllm.engine.request import Delivery
from chatterbox_vllm.t3.sampling import Sampling

from .fakes import END, EngineBeside, a_voice

FIRST, LOOKAHEAD, TOKENS = 5, 3, 60
FIRST_KNOWN = FIRST + LOOKAHEAD


class Beside:
    """An engine whose S3Gen works in a thread, as on a GPU, and begins nothing until it may."""

    def __init__(self) -> None:
        def script(rows: int, sampling: Sampling) -> list[int]:
            return [*range(100, 100 + TOKENS), END]

        self.engine = EngineBeside(script, ChunkPlan(first=(FIRST, 30), later=(30,)))
        self.scheduler, self.may = self.engine.scheduler, self.engine.may
        self.voice: Voice = a_voice()

    def submit(self, delivery: Delivery = Delivery.STREAM) -> int:
        request = SpeechRequest("Hello.", self.voice, SpeechParameters(max_tokens=200, seed=1))
        return self.scheduler.submit(request, delivery=delivery)

    def drawn(self, serial: int) -> int:
        """Tokens that T3 has drawn for a request that is still there."""
        (left,) = (left for name, (left, _) in self.engine.talker.running.items() if name.startswith(f"{serial}/"))
        return TOKENS + 1 - left

    def step(self, times: int) -> list[object]:
        return [event for _ in range(times) for event in self.scheduler.step(0.001)]


@pytest.fixture
def beside() -> Iterator[Beside]:
    beside = Beside()
    yield beside
    beside.engine.close()


def until_first_chunk_is_cut(beside: Beside) -> None:
    while not beside.scheduler.at_s3gen.first_sounds:
        beside.step(1)


def test_t3_waits_for_a_first_sound(beside: Beside) -> None:
    serial = beside.submit()
    until_first_chunk_is_cut(beside)
    drawn = beside.drawn(serial)
    assert FIRST_KNOWN <= drawn < 2 * FIRST_KNOWN
    beside.step(20)
    assert beside.drawn(serial) == drawn
    beside.may.release()
    while not any(isinstance(event, AudioChunk) for event in beside.step(1)):
        pass
    beside.step(5)
    assert beside.drawn(serial) >= drawn + 5  # the listener has less than a second to hear


@pytest.mark.parametrize("other", [Delivery.WHOLE, Delivery.STREAM])
def test_t3_does_not_wait_where_another_needs_it(beside: Beside, other: Delivery) -> None:
    """One whose audio is asked for as a whole, and one that has no first chunk yet."""
    serial = beside.submit()
    until_first_chunk_is_cut(beside)
    drawn, newcomer = beside.drawn(serial), beside.submit(other)
    beside.step(FIRST)
    assert beside.drawn(newcomer) == FIRST and beside.drawn(serial) == drawn + FIRST


def test_t3_does_not_wait_for_s3gen_in_its_own_thread(beside: Beside) -> None:
    """There S3Gen works only when T3 lets it."""
    beside.may.release(100)
    beside.scheduler.at_s3gen.synthesis = beside.engine.voicing
    beside.submit()
    while beside.scheduler.unfinished:
        assert not beside.scheduler.precedence.s3gen_first()
        beside.step(1)


def test_an_abort_ends_the_wait(beside: Beside) -> None:
    serial = beside.submit()
    until_first_chunk_is_cut(beside)
    newcomer = beside.submit()
    beside.scheduler.abort(serial)
    beside.step(FIRST)
    assert beside.drawn(newcomer) == FIRST
