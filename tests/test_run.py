"""Speaking a stream of requests to its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from chatterbox_vllm import SpeechParameters, SpeechRequest
from chatterbox_vllm.engine.engine import Engine as OwnedEngine
from chatterbox_vllm.errors import ConfigError

from .fakes import Engine, a_voice, letters

PARAMETERS = SpeechParameters(max_tokens=50, seed=1)


def test_of_the_texts_at_hand_the_longest_go_first() -> None:
    texts = [f"{'a' * letters_of_it}." for letters_of_it in (3, 9, 1, 7, 5)]
    engine = Engine(letters, max_batch_size=1)
    results = list(engine.run([SpeechRequest(text, a_voice(), PARAMETERS) for text in texts]))
    assert [result.index for result in results] == [1, 3, 4, 0, 2]
    assert [len(result.speech_tokens) for result in results] == [10, 8, 6, 4, 2]


def test_a_request_is_read_when_there_is_room_for_it() -> None:
    engine, read = Engine(letters, max_batch_size=1), 0

    def endless() -> Iterator[SpeechRequest]:
        nonlocal read
        while True:
            read += 1
            yield SpeechRequest("Abc.", a_voice(), PARAMETERS)

    run = engine.run(endless())
    next(run)
    ahead = read
    for _ in range(5):
        next(run)
    assert read == ahead + 5
    run.close()
    assert engine.scheduler.unfinished == 0


def test_what_is_no_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a SpeechRequest or a ConversionRequest, not str"):
        list(Engine(letters).run(["Hello."]))


def test_an_iterator_does_not_drop_its_requests_while_another_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(letters, max_batch_size=1)
    monkeypatch.setattr(engine.talker, "close", lambda: None, raising=False)
    owned = OwnedEngine(engine.scheduler, engine.talker, engine.voicing)
    run = owned.run([SpeechRequest("Abc.", a_voice(), PARAMETERS)] * 3)
    next(run)
    abort_all, abort, begun = engine.scheduler.abort_all, engine.scheduler.abort, threading.Event()
    done: list[object] = []

    def slowly() -> None:
        begun.set()
        time.sleep(0.2)
        abort_all()
        done.append("all")

    def noted(serial: int) -> bool:
        done.append(threading.current_thread())
        return abort(serial)

    monkeypatch.setattr(engine.scheduler, "abort_all", slowly)
    monkeypatch.setattr(engine.scheduler, "abort", noted)
    closing = threading.Thread(target=owned.shutdown)
    closing.start()
    assert begun.wait(10)
    with pytest.raises(ConfigError, match="shut down"):
        next(run)
    closing.join()
    assert threading.current_thread() not in done[: done.index("all")]
