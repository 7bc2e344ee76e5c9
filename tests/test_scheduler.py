"""The scheduler, with a talker and an S3Gen of a few lines each: milliseconds, no model."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
import torch

from chatterbox_vllm import SpeechParameters, SpeechRequest, SpeechResult, Voice
from chatterbox_vllm.engine.request import MAX_SEED, Delivery, segment_seed
from chatterbox_vllm.errors import AbortedError, ConfigError, DeadlineError, GenerationError, TextTooLongError
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.text.normalize import normalize_punctuation
from chatterbox_vllm.text.split import split_text

from .fakes import CONFIG, END, UNLUCKY, Engine, ScriptedTalker, ToneS3Gen, a_voice, letters


@pytest.fixture(scope="module")
def voice() -> Voice:
    return a_voice()


def make(script, max_batch_size: int = 4) -> tuple[Engine, ScriptedTalker, ToneS3Gen]:
    engine = Engine(script, max_batch_size)
    return engine, engine.talker, engine.s3gen


def test_every_request_gets_its_own_result(voice: Voice) -> None:
    pipeline, talker, s3gen = make(letters)
    texts = ["A" + "a" * (i % 7) + "." for i in range(25)]
    results = list(pipeline.run([SpeechRequest(t, voice, SpeechParameters(max_tokens=50, seed=1)) for t in texts]))
    assert sorted(r.index for r in results) == list(range(25))
    for result in results:
        assert result.error is None and result.finish_reason == "stop"
        assert len(result.speech_tokens) == len(texts[result.index])
    assert talker.most == 4  # admission is bounded
    assert max(s3gen.batches) <= 4 and len(s3gen.batches) < 25


def test_one_failure_does_not_lose_the_others(voice: Voice) -> None:
    def script(rows: int, sampling: Sampling) -> list[int]:
        return [13 if sampling.max_tokens == 49 else 7, END]

    pipeline, _, _ = make(script)
    fine, unlucky = SpeechParameters(max_tokens=50), SpeechParameters(max_tokens=49)
    requests = [
        SpeechRequest("Fine.", voice, fine),
        SpeechRequest("  ", voice, fine),
        SpeechRequest("Unlucky.", voice, unlucky),
        SpeechRequest("x" * 500, voice, fine),
        SpeechRequest("Fine too.", voice, fine),
    ]
    results = {r.index: r for r in pipeline.run(requests)}
    assert [type(results[i].error) for i in range(5)] == [
        type(None),
        ConfigError,
        GenerationError,
        TextTooLongError,
        type(None),
    ]
    assert all((results[i].audio is None) == (results[i].error is not None) for i in range(5))
    assert "max_model_len" in str(results[3].error)


def test_what_is_no_speech_is_dropped(voice: Voice) -> None:
    pipeline, _, _ = make(lambda rows, sampling: [1, 6561, 8000, 2, END, 3, END])
    (result,) = pipeline.run([SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=50))])
    assert result.speech_tokens == (1, 2)


def test_no_sound_at_all_is_an_error(voice: Voice) -> None:
    pipeline, _, _ = make(lambda rows, sampling: [END])
    (result,) = pipeline.run([SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=50, seed=9))])
    assert isinstance(result.error, GenerationError) and "seed 9" in str(result.error)


def test_the_token_limit_is_told(voice: Voice, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "chatterbox_vllm")  # the command line, run in this process, makes it quieter
    pipeline, _, _ = make(lambda rows, sampling: list(range(100, 100 + sampling.max_tokens)))
    (result,) = pipeline.run([SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=50))])
    assert result.finish_reason == "length" and "max_tokens=50" in caplog.text


def test_the_same_seed_gives_the_same_noise(voice: Voice) -> None:
    pipeline, _, _ = make(letters)

    def speak(seed: int | None, count: int) -> torch.Tensor:
        parameters = SpeechParameters(max_tokens=50, seed=seed)
        results = {r.index: r for r in pipeline.run([SpeechRequest("Abc.", voice, parameters)] * count)}
        return results[0].audio

    assert torch.equal(speak(5, 1), speak(5, 6))
    assert not torch.equal(speak(5, 1), speak(6, 1))
    assert not torch.equal(speak(None, 1), speak(None, 1))


def test_different_step_counts_are_not_mixed(voice: Voice) -> None:
    pipeline, _, s3gen = make(letters)
    requests = [
        SpeechRequest("Abc.", voice, SpeechParameters(max_tokens=50, diffusion_steps=4 + i % 2)) for i in range(4)
    ]
    assert len(list(pipeline.run(requests))) == 4
    assert s3gen.batches == [2, 2]


def test_stopping_early_drops_what_is_left(voice: Voice) -> None:
    pipeline, talker, _ = make(letters, max_batch_size=2)
    run = pipeline.run([SpeechRequest("A" * n + ".", voice, SpeechParameters(max_tokens=50)) for n in range(1, 9)])
    next(run)
    run.close()
    assert not talker.running and talker.aborted


def texts_of(events: list) -> list[str]:
    return [type(event).__name__ for event in events]


def drain(engine: Engine) -> list:
    events = []
    while engine.scheduler.unfinished:
        events += engine.scheduler.step()
    return events


LONG = " ".join(f"This is sentence number {n}, and it says very little." for n in range(40))


def test_a_long_text_is_spoken_in_segments_and_joined_in_order(voice: Voice) -> None:
    def script(rows: int, sampling: Sampling) -> list[int]:
        return [rows, END]  # a segment's token tells its length

    engine = Engine(script, max_model_len=2000)
    engine.prompts.builder = PromptBuilder(replace(CONFIG, text_positions=900)).requires_grad_(False)
    engine.scheduler.submit(SpeechRequest(LONG, voice, SpeechParameters(max_tokens=50, seed=1)), "book")
    events = drain(engine)
    assert texts_of(events) == ["SpeechResult"]
    result = events[-1]
    pieces = split_text(LONG)
    assert result.segments == len(pieces) > 5
    rows = [CONFIG.conditioning_length + 4 + len(normalize_punctuation(piece.text)) for piece in pieces]
    assert list(result.speech_tokens) == rows
    engine.scheduler.submit(
        SpeechRequest(LONG, voice, SpeechParameters(max_tokens=50, seed=1)), "book", delivery=Delivery.SEGMENTS
    )
    *chunks, last = drain(engine)
    assert texts_of(chunks) == ["AudioChunk"] * len(pieces)
    assert torch.equal(torch.cat([chunk.audio for chunk in chunks]), result.audio)
    assert last.audio is None and last.error is None and last.samples == len(result.audio)


def test_segments_have_seeds_of_their_own_and_the_first_the_requests(voice: Voice) -> None:
    seeds = [segment_seed(5, k) for k in range(100)]
    assert seeds[0] == 5 and len(set(seeds)) == 100 and all(0 <= seed <= MAX_SEED for seed in seeds)
    assert segment_seed(MAX_SEED, 3) <= MAX_SEED


def test_replayed_noise_needs_a_short_text(voice: Voice) -> None:
    engine = Engine(letters)
    engine.scheduler.submit(SpeechRequest(LONG, voice, uniforms=(0.5,) * 1000))
    (result,) = drain(engine)
    assert isinstance(result.error, ConfigError) and "segments" in str(result.error)


def test_lower_priority_numbers_go_first(voice: Voice) -> None:
    engine = Engine(letters, max_batch_size=1)
    parameters = SpeechParameters(max_tokens=50)
    for n in range(10):
        engine.scheduler.submit(SpeechRequest("Same.", voice, parameters, priority=5), f"slow-{n}")
    engine.scheduler.submit(SpeechRequest("Same.", voice, parameters, priority=1), "fast")
    order = [event.request_id for event in drain(engine) if isinstance(event, SpeechResult)]
    assert order.index("fast") <= 1  # nothing was admitted before the first step


def test_a_deadline_drops_a_request_and_frees_what_it_holds(voice: Voice) -> None:
    engine = Engine(lambda rows, sampling: [1] * sampling.max_tokens)
    engine.scheduler.submit(SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=300), deadline=0.05), "late")
    engine.scheduler.submit(SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=20)), "early")
    results = {}
    while engine.scheduler.unfinished:
        time.sleep(0.005)
        results.update({e.request_id: e for e in engine.scheduler.step() if isinstance(e, SpeechResult)})
    assert isinstance(results["late"].error, DeadlineError) and results["early"].error is None
    assert not engine.talker.running and len(engine.talker.aborted) == 1


def test_abort_at_every_stage(voice: Voice) -> None:
    for steps in range(12):
        engine, serials = Engine(letters, max_batch_size=1), []
        for n in range(4):
            request = SpeechRequest("Abcdef.", voice, SpeechParameters(max_tokens=50, seed=n))
            serials.append(engine.scheduler.submit(request, f"r{n}"))
        events = [event for _ in range(steps) for event in engine.scheduler.step()]
        finished = {e.request_id for e in events if isinstance(e, SpeechResult)}
        for n in range(4):
            assert engine.scheduler.abort(serials[n]) == (f"r{n}" not in finished)
        events += drain(engine)
        results = [e for e in events if isinstance(e, SpeechResult)]
        assert sorted(r.request_id for r in results) == ["r0", "r1", "r2", "r3"]
        assert all((r.request_id in finished) != isinstance(r.error, AbortedError) for r in results)
        assert not engine.talker.running and not engine.voicing.busy and engine.scheduler.talking == 0


def test_an_abort_or_a_deadline_ends_the_work_of_s3gen(voice: Voice) -> None:
    for late in (False, True):
        engine = Engine(letters, max_batch_size=1)
        parameters = SpeechParameters(max_tokens=50, diffusion_steps=10, seed=1)
        deadline = 0.2 if late else None
        dropped = engine.scheduler.submit(SpeechRequest("Abcdef.", voice, parameters, deadline=deadline), "dropped")
        kept = engine.scheduler.submit(SpeechRequest("Ghi.", voice, parameters), "kept")

        def meanwhile(engine: Engine = engine, dropped: int = dropped, late: bool = late) -> None:
            if engine.s3gen.steps == 3:
                if late:
                    time.sleep(0.25)
                else:
                    assert engine.scheduler.abort(dropped)

        engine.scheduler.meanwhile = meanwhile
        results = {event.serial: event for event in drain(engine) if isinstance(event, SpeechResult)}
        assert isinstance(results[dropped].error, DeadlineError if late else AbortedError)
        assert results[kept].error is None and results[kept].samples == 5
        assert engine.s3gen.steps == (4 if late else 3) + 10  # of the dropped one not all ten


def test_requests_are_read_only_as_far_ahead_as_needed(voice: Voice) -> None:
    engine, read = Engine(letters, max_batch_size=2), 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield SpeechRequest("Abc.", voice, SpeechParameters(max_tokens=50))

    run = engine.run(endless())
    for delivered in range(1, 50):
        next(run)
        assert read - delivered <= 3 * engine.scheduler.admission.max_admitted + engine.scheduler.admission.max_waiting
    run.close()
    assert engine.scheduler.unfinished == 0 and not engine.talker.running


def test_a_name_is_a_label_and_its_next_user_is_another_request(voice: Voice) -> None:
    """Deadlines, aborts and audio on its way belong to a request, not to its name."""
    engine = Engine(letters)
    parameters = SpeechParameters(max_tokens=50, seed=1)
    engine.scheduler.submit(SpeechRequest("Abc.", voice, parameters, deadline=60.0), "a")
    first = [event for event in drain(engine) if isinstance(event, SpeechResult)]
    assert first[0].error is None
    second = engine.scheduler.submit(SpeechRequest("Abcdefgh.", voice, parameters), "a")
    third = engine.scheduler.submit(SpeechRequest("Abcdefgh.", voice, parameters), "a")
    # The first one's deadline passes.
    engine.scheduler._deadlines = [(0.0, serial) for _, serial in engine.scheduler._deadlines]
    engine.scheduler.step()
    assert engine.scheduler.abort(second)
    results = {event.serial: event for event in drain(engine)}
    assert isinstance(results[second].error, AbortedError)
    assert results[third].error is None and torch.equal(results[third].audio[:3], torch.tensor([100.0] * 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exaggeration", 2.5),
        ("cfg_weight", -0.1),
        ("cfg_weight", float("nan")),
        ("temperature", "hot"),
        ("min_p", 1.2),
        ("top_p", 0),
        ("repetition_penalty", 0),
        ("max_tokens", 0),
        ("max_tokens", 10.0),
        ("diffusion_steps", 0),
        ("seed", -1),
        ("seed", True),
    ],
)
def test_parameters_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        SpeechParameters(**{name: value})


@pytest.mark.parametrize(
    ("tokens", "said"), [([UNLUCKY, END], "unlucky"), ([END], "ended its speech before the first sound")]
)
def test_several_pieces_of_a_request_that_fail_at_once_are_one_failure(
    voice: Voice, tokens: list[int], said: str
) -> None:
    """In one batch of S3Gen, or in one step of T3; the request beside it is spoken."""
    text = "One two three.\n\nFour five six.\n\n" * 2
    engine = Engine(lambda rows, sampling: tokens if sampling.temperature == 0 else [100, 101, END], max_batch_size=8)
    parameters = (SpeechParameters(seed=1, temperature=0.0), SpeechParameters(seed=1))
    results = sorted(engine.run(SpeechRequest(text, voice, each) for each in parameters), key=lambda r: r.index)
    assert said in str(results[0].error) and results[0].segments > 1
    assert results[1].error is None and results[1].samples > 0
    assert not engine.talker.running and not engine.voicing.busy and engine.scheduler.unfinished == 0
