"""Turns between requests, and limits on what is on its way."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from chatterbox_vllm import (
    BatchError,
    ConfigError,
    GenerationError,
    Limits,
    OverloadedError,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
)
from chatterbox_vllm.engine import admission as admission_module
from chatterbox_vllm.engine import at_t3 as at_t3_module
from chatterbox_vllm.engine.budgets import Meter
from chatterbox_vllm.engine.request import Delivery
from chatterbox_vllm.engine.turns import Turns
from chatterbox_vllm.t3.conditioning import PromptBuilder

from .fakes import CONFIG, END, Engine, a_voice, letters

BOOK = " ".join(f"This is sentence number {n}, and it says very little." for n in range(400))


def engine_for_books(max_batch_size: int) -> Engine:
    engine = Engine(lambda rows, sampling: [7] * 20 + [END], max_batch_size, max_model_len=2000)
    engine.prompts.builder = PromptBuilder(replace(CONFIG, text_positions=900)).requires_grad_(False)
    return engine


def test_turns() -> None:
    turns: Turns[str] = Turns()
    for entry, priority in (("a", 0), ("b", 0), ("late", 5), ("first", -1), ("c", 0)):
        turns.add(entry, priority)
    turns.drop("b", 0)
    turns.drop("never there", 3)
    assert len(turns) == 4
    assert [turns.take() for _ in range(5)] == ["first", "a", "c", "late", None]


def test_who_may_end_a_turn_of_several_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, voice = Engine(letters, max_batch_size=2), a_voice()
    scheduler = engine.scheduler

    def submit(delivery: Delivery = Delivery.WHOLE) -> None:
        scheduler.submit(SpeechRequest("A sentence of some letters.", voice), delivery=delivery)

    def yields() -> bool:
        return engine.talker.should_yield()

    submit()
    scheduler.step()
    assert not yields()
    submit()
    assert yields()  # there is room for a newcomer
    scheduler.step()
    submit()
    assert not yields()  # there is none
    scheduler.admission.reserved = 1
    assert yields()  # a place is kept
    scheduler.step()
    monkeypatch.setattr(type(engine.voicing), "ready", True)
    assert not yields()  # audio is ready, and nobody listens
    submit(Delivery.STREAM)
    scheduler.step()
    assert yields()
    monkeypatch.undo()
    scheduler.should_yield = lambda: True
    assert yields()


def test_where_many_listen_a_turn_is_not_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(at_t3_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    engine, voice = Engine(lambda rows, sampling: [7] * 390 + [END], max_batch_size=40, max_model_len=900), a_voice()
    scheduler = engine.scheduler
    scheduler.should_yield = lambda: True

    def come(count: int, delivery: Delivery = Delivery.WHOLE) -> None:
        for _ in range(count):
            request = SpeechRequest("Only this.", voice, SpeechParameters(max_tokens=400, seed=1))
            scheduler.submit(request, delivery=delivery)
        scheduler.step()

    come(32)
    assert engine.talker.should_yield()  # nobody listens
    scheduler.abort_all()
    come(30)
    come(1, Delivery.STREAM)
    assert engine.talker.should_yield()  # they are few
    come(1)
    assert not engine.talker.should_yield()
    now[0] += 0.06
    assert engine.talker.should_yield()
    scheduler.abort_all()


@pytest.mark.parametrize("max_batch_size", [1, 4])
def test_a_sentence_beside_a_book_waits_for_a_few_segments_only(max_batch_size: int) -> None:
    engine, voice = engine_for_books(max_batch_size), a_voice()
    parameters = SpeechParameters(max_tokens=50, seed=1)
    book = engine.scheduler.submit(SpeechRequest(BOOK, voice, parameters), "book", delivery=Delivery.SEGMENTS)
    for _ in range(25):
        engine.scheduler.step()
    sentence = engine.scheduler.submit(SpeechRequest("Only this.", voice, parameters), "sentence")
    pieces_of_the_book = 0
    while True:
        events = engine.scheduler.step()
        pieces_of_the_book += sum(event.serial == book for event in events)
        if any(event.serial == sentence for event in events):
            break
    assert pieces_of_the_book <= 2 * max_batch_size
    assert engine.scheduler.abort(book)


def test_places_are_kept_for_newcomers_where_some_are_expected() -> None:
    engine, voice = engine_for_books(4), a_voice()
    engine.scheduler.admission.reserved = 1
    parameters = SpeechParameters(max_tokens=50, seed=1)
    engine.scheduler.submit(SpeechRequest(BOOK, voice, parameters), "book", delivery=Delivery.SEGMENTS)
    for _ in range(5):
        engine.scheduler.step()
    assert engine.scheduler.talking == 3
    sentence = engine.scheduler.submit(SpeechRequest("Only this.", voice, parameters), "sentence")
    engine.scheduler.step()
    assert engine.scheduler.talking == 4  # at once
    steps = 0
    while not any(event.serial == sentence for event in engine.scheduler.step()):
        steps += 1
    assert steps <= 25  # its own 21 tokens, and S3Gen before all else
    # Requests of one piece fill all places.
    for _ in range(9):
        engine.scheduler.submit(SpeechRequest("Only this.", voice, parameters))
    engine.scheduler.step()
    assert engine.scheduler.talking == 4
    engine.scheduler.abort_all()


def test_many_who_come_at_any_time_are_taken_in_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(admission_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    engine, voice = Engine(lambda rows, sampling: [7] * 390 + [END], max_batch_size=80, max_model_len=900), a_voice()
    scheduler = engine.scheduler
    scheduler.admission.reserved = 5

    def come(count: int) -> int:
        for _ in range(count):
            scheduler.submit(SpeechRequest("Only this.", voice, SpeechParameters(max_tokens=400, seed=1)))
        scheduler.step()
        return scheduler.talking

    assert [come(n) for n in (60, 1, 1)] == [60, 61, 62]  # at once
    assert [come(n) for n in (2, 1, 1)] == [64, 64, 64]
    assert not engine.talker.should_yield()
    now[0] += 0.1
    assert come(1) == 67
    # One for whom nobody makes way waits for nobody either.
    now[0] += 5
    assert come(1) == 68
    scheduler.admission.reserved = 0  # as where all are there from the start
    assert come(3) == 71
    scheduler.abort_all()


def test_a_full_house_takes_pieces_together(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, voice = Engine(letters, max_batch_size=64), a_voice()
    parameters = SpeechParameters(max_tokens=50, seed=1)
    for n in range(300):
        engine.scheduler.submit(SpeechRequest("a" * (5 + 7 * n % 31) + ".", voice, parameters))
    taken, add = [], engine.talker.add
    monkeypatch.setattr(engine.talker, "add", lambda *args, **kwargs: (taken.append(1), add(*args, **kwargs)))
    groups = []
    while engine.scheduler.unfinished:
        engine.scheduler.step()
        groups.append(len(taken))
        taken.clear()
    groups = [size for size in groups if size]
    assert groups[0] == 64 and sum(groups) == 300
    assert min(groups[1:-1]) >= 4  # a sixteenth of the places


def test_beside_t3_finished_pieces_are_voiced_together(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, voice = Engine(letters, max_batch_size=64), a_voice()
    monkeypatch.setattr(engine.voicing, "works_in_poll", False)
    handed, add = [], engine.voicing.add
    monkeypatch.setattr(
        engine.voicing, "add", lambda spoken: (handed.extend([engine.scheduler.talking] * len(spoken)), add(spoken))
    )
    serials = [
        engine.scheduler.submit(SpeechRequest("a" * (5 + n % 50) + ".", voice, SpeechParameters(max_tokens=90, seed=n)))
        for n in range(64)
    ]
    groups, aborted = [], 0
    results: list[SpeechResult] = []
    while engine.scheduler.unfinished:
        results += engine.scheduler.step()
        if handed:
            groups.append((len(handed), handed[0]))
            handed.clear()
        if not aborted and engine.scheduler.waiting_for_voice > 2:  # spoken, and not handed over
            assert engine.scheduler.abort(serials[min(set(range(64)) - {r.serial for r in results})])
            aborted = 1
    assert all(8 * size >= talking for size, talking in groups) and groups[0][0] > 1
    assert len(results) == 64 and sum(r.error is not None for r in results) == aborted == 1
    assert sum(size for size, _ in groups) == 63


def test_a_request_of_higher_priority_overtakes_a_book() -> None:
    engine, voice = engine_for_books(1), a_voice()
    parameters = SpeechParameters(max_tokens=50, seed=1)
    for name in ("one", "two"):
        engine.scheduler.submit(SpeechRequest(BOOK, voice, parameters), name, delivery=Delivery.SEGMENTS)
    engine.scheduler.step()
    urgent = engine.scheduler.submit(SpeechRequest(BOOK[:900], voice, parameters, priority=-1), "urgent")
    others = 0
    while True:
        events = engine.scheduler.step()
        others += sum(event.serial != urgent for event in events)
        if any(event.serial == urgent for event in events):
            break
    assert others <= 1  # what T3 had in hand
    engine.scheduler.abort_all()


def test_a_caller_who_takes_nothing_is_not_spoken_to_for_ever() -> None:
    engine, voice = engine_for_books(2), a_voice()
    engine.scheduler.max_untaken = 0.5  # seconds, which is 12,000 samples
    serial = engine.scheduler.submit(
        SpeechRequest(BOOK, voice, SpeechParameters(max_tokens=50)), delivery=Delivery.SEGMENTS
    )
    events = []
    while not engine.scheduler.blocked:
        events += engine.scheduler.step(0.0)
    untaken = sum(len(event.audio) for event in events)
    assert 12_000 < untaken < 40_000
    engine.scheduler.taken(serial, untaken)
    assert not engine.scheduler.blocked
    while engine.scheduler.unfinished:
        for event in engine.scheduler.step(0.0):
            events.append(event)
            if not isinstance(event, SpeechResult):
                engine.scheduler.taken(serial, len(event.audio))
    assert events[-1].error is None and events[-1].segments == len(events) - 1


def test_a_piece_that_stays_mute_is_tried_with_other_draws() -> None:
    tries = 0

    def mute_twice(rows: int, sampling: object) -> list[int]:
        nonlocal tries
        tries += 1
        return [END] if tries < 3 else [7, END]

    engine = Engine(mute_twice)
    (result,) = engine.run([SpeechRequest("Hello.", a_voice(), SpeechParameters(max_tokens=50))])
    assert result.error is None and tries == 3

    engine = Engine(lambda rows, sampling: [END])
    (result,) = engine.run([SpeechRequest("Hello there.", a_voice(), SpeechParameters(max_tokens=50))])
    assert isinstance(result.error, GenerationError)
    assert "'Hello there.'" in str(result.error) and "3 times" in str(result.error)

    # Without chance in it another try says the same.
    engine = Engine(lambda rows, sampling: [END])
    (result,) = engine.run([SpeechRequest("Hello.", a_voice(), SpeechParameters(max_tokens=50, temperature=0.0))])
    assert "1 time " in str(result.error)


def test_what_a_stage_raises_is_the_requests_alone() -> None:
    engine = Engine(lambda rows, sampling: [7, END])
    add = engine.talker.add

    def refuse_one(request_id, prompt, sampling, seed, uniforms=None, **told):
        if sampling.max_tokens == 13:
            raise ValueError("not this one")
        add(request_id, prompt, sampling, seed, uniforms)

    engine.talker.add = refuse_one
    requests = [SpeechRequest("Hello.", a_voice(), SpeechParameters(max_tokens=n)) for n in (12, 13, 14)]
    errors = {result.index: result.error for result in engine.run(requests)}
    assert errors[0] is errors[2] is None
    assert isinstance(errors[1], GenerationError) and "not this one" in str(errors[1])


def test_limits() -> None:
    meter = Meter(Limits(requests=2, characters=100, characters_of_one=80, waiting_seconds_of_all=1.0), 10)
    with pytest.raises(ConfigError, match="81 characters, at most 80"):
        meter.take_on(81)
    meter.take_on(60)
    with pytest.raises(OverloadedError, match="characters"):
        meter.take_on(60)
    meter.take_on(10)
    with pytest.raises(OverloadedError, match="2 requests"):
        meter.take_on(1)
    meter.let_go(60)
    meter.waiting(11)
    with pytest.raises(OverloadedError, match="audio"):
        meter.take_on(1)
    meter.waiting(-11)
    meter.take_on(1)
    for wrong in ({"requests": 0}, {"requests": 1.5}, {"waiting_seconds": float("nan")}, {"characters": True}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Limits(**wrong)


def test_a_batch_error_survives_pickling() -> None:
    error = BatchError([torch.zeros(1, 3), GenerationError("no")], "recording")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and len(again.results) == 2
