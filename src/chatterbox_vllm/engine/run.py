"""Speaking a stream of requests to its end, in the caller's thread."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable

from chatterbox_vllm.engine.conversion import Request
from chatterbox_vllm.engine.request import AudioChunk, Delivery, SpeechResult
from chatterbox_vllm.engine.scheduler import Scheduler


def run_all(
    scheduler: Scheduler, requests: Iterable[Request], on_step: Callable[[int], None] | None = None
) -> Generator[SpeechResult, None, None]:
    """Speak all requests; yield each result when it is ready, failures included, in no particular order.

    Requests are taken from `requests` as room for them appears, so it may be endless. Of those at hand the longest
    texts go first: what is left for the end is short, and the stages stay busy together for longer. Closing the
    iterator early drops what is left.

    Args:
        on_step: called after every step with the number of pieces that T3 is speaking.
    """
    # Enough that T3 never runs dry, few enough that memory does not depend on the input.
    most = 3 * scheduler.admission.max_admitted + scheduler.admission.max_waiting
    source = enumerate(requests)
    ours: set[int] = set()
    exhausted = False
    try:
        while ours or not exhausted:
            if not exhausted:
                room = most - len(ours)
                at_hand = list(itertools.islice(source, room))
                exhausted = len(at_hand) < room
                for index, request in sorted(at_hand, key=_length, reverse=True):
                    ours.add(scheduler.submit(request, index=index))
            for event in scheduler.step():
                if isinstance(event, SpeechResult):
                    ours.discard(event.serial)
                    yield event
            if on_step is not None:
                on_step(scheduler.talking)
    finally:
        for serial in ours:
            scheduler.abort(serial)
        scheduler.collect()  # nobody is left to hear of them


def stream_one(scheduler: Scheduler, request: Request) -> Generator[AudioChunk | SpeechResult, None, None]:
    """Speak one request; yield its chunks as they are rendered, and its result at the end. Closing early drops it.

    Audio is rendered as far ahead as the engine has got when the caller asks for the next chunk.

    Raises:
        ChatterboxError: the request failed.
    """
    serial = scheduler.submit(request, delivery=Delivery.STREAM)
    try:
        while True:
            for event in scheduler.step():
                if isinstance(event, SpeechResult):
                    if event.error is not None:
                        raise event.error
                    yield event
                    return
                scheduler.taken(serial, len(event.audio))
                yield event
    finally:
        scheduler.abort(serial)
        scheduler.collect()  # nobody is left to hear of it


def _length(entry: tuple[int, object]) -> int:
    """Of a request's text; whatever else it may be is for the scheduler to refuse."""
    return len(getattr(entry[1], "text", ""))
