"""Speech that leaves its text: what the guard finds, what the scheduler makes of it."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chatterbox_vllm import SpeechParameters, SpeechRequest, SpeechResult, Voice
from chatterbox_vllm.engine.guard import Bounds, end_before_repetition
from chatterbox_vllm.engine.request import Delivery
from chatterbox_vllm.engine.said import Said
from chatterbox_vllm.t3.options import T3Output
from chatterbox_vllm.t3.sampling import Sampling

from .fakes import CONFIG, END, Engine, a_voice

GOLDENS = Path(__file__).parent / "parity" / "goldens"
TEXT = "A sentence of some words, as they are said every day."
HEALTHY = random.Random(0).choices(range(14, 500), k=70)  # 13 is what the S3Gen here fails for


@pytest.fixture(scope="module")
def voice() -> Voice:
    return a_voice()


@pytest.mark.parametrize("period", [1, 2, 7, 25, 60, 75])
def test_repetition_is_cut_behind_its_first_period(period: int) -> None:
    rng = random.Random(period)
    before = [rng.randrange(6561) for _ in range(90)]
    again = [rng.randrange(6561) for _ in range(period)]
    said = before + again * 60
    first = next(n for n in range(len(said)) if end_before_repetition(said[:n]) is not None)
    assert first - len(before) <= max(50, 3 * period)
    assert end_before_repetition(said[:first]) == len(before) + period
    assert end_before_repetition([*said, 7777]) is None  # it goes on with something else


def test_what_is_healthy_is_left_alone() -> None:
    rng = random.Random(1)
    for vocabulary in (6561, 40):  # and where few tokens are used
        said = [rng.randrange(vocabulary) for _ in range(1000)]
        assert all(end_before_repetition(said[:n]) is None for n in range(0, 1000, 3))
    pause = [rng.randrange(6561) for _ in range(60)] + [4299] * 45
    assert end_before_repetition(pause) is None  # nearly two seconds of silence


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("t3_*.json")), ids=lambda path: path.stem)
def test_what_the_published_models_say_is_left_alone(path: Path) -> None:
    cases = json.loads(path.read_text())["cases"]
    said = [array.ravel().tolist() for name, array in np.load(path.with_suffix(".npz")).items() if "tokens" in name]
    said += [case["tokens"] for case in cases if "tokens" in case]
    assert len(said) >= len(cases)
    assert all(end_before_repetition(tokens[:n]) is None for tokens in said for n in range(len(tokens) + 1))


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("Was.", 0, 90),  # 32 tokens by a slow voice
        ("Not as ill as I wish, he replied.", 0, 207),
        ("1999", 0, 175),
        ("你好，今天天气怎么样？", 0, 250),
        ("안녕하세요, 반갑습니다. 오늘 날씨가 참 좋네요.", 0, 290),
        ("Как у вас дела сегодня вечером, друзья мои?", 17, 260),
    ],
)
def test_bounds(text: str, least: int, most: int) -> None:
    bounds = Bounds.of(text)
    assert bounds.least == pytest.approx(least, abs=2) and bounds.most == pytest.approx(most, rel=0.2)
    assert bounds.least < bounds.usual < bounds.most


def test_what_comes_of_tokens_does_not_depend_on_how_many_are_told_together() -> None:
    draw = random.Random(0)
    for _ in range(40):
        begun = [draw.randrange(6000) for _ in range(draw.randrange(120))]
        period = [draw.randrange(6000) for _ in range(draw.choice((1, 3, 20)))]
        # Half of them come out of their circle again, and most of those between two looks.
        tokens = [*begun, *period * (draw.randrange(20, 90) // len(period)), *range(draw.choice((0, 60))), END]
        found = set()
        for together in (1, 9, 18, 1000):
            said, told = Said(CONFIG, Bounds.of(TEXT), 1000), [*tokens]
            while told and not said.over:
                now, told = told[:together], told[together:]
                said.hear(T3Output("one", tuple(now), None if told else "stop"))
            found.add((tuple(said.tokens), said.fault))
        assert len(found) == 1


def scripted(*attempts: list[int]) -> tuple[Callable[[int, Sampling], list[int]], list[int]]:
    """A talker that says one of these after the other, each no longer than it may; and how much that was each time."""
    left, limits = iter(attempts), []

    def script(rows: int, sampling: Sampling) -> list[int]:
        limits.append(sampling.max_tokens)
        return next(left)[: sampling.max_tokens]

    return script, limits


def speak(
    voice: Voice, *attempts: list[int], delivery: Delivery = Delivery.WHOLE, guarded: bool = True, **options: object
) -> tuple[SpeechResult, list[int]]:
    script, limits = scripted(*attempts)
    engine = Engine(script, max_model_len=900)
    engine.scheduler.at_t3.guarded = guarded
    request = SpeechRequest(TEXT, voice, SpeechParameters(max_tokens=400, seed=3), **options)
    engine.scheduler.submit(request, delivery=delivery)
    events = list(iterate(engine))
    assert not engine.talker.running
    return events[-1], limits


def iterate(engine: Engine) -> Iterator:
    while engine.scheduler.unfinished:
        for event in engine.scheduler.step():
            if not isinstance(event, SpeechResult):
                engine.scheduler.taken(event.serial, len(event.audio))
            yield event


CIRCLES = HEALTHY[:40] + HEALTHY[40:50] * 30
ENDLESS = random.Random(1).choices(range(14, 500), k=400)
HASTY = [*HEALTHY[:5], END]


@pytest.mark.parametrize("bad", [CIRCLES, ENDLESS, HASTY])
def test_another_attempt_is_heard(voice: Voice, bad: list[int]) -> None:
    result, limits = speak(voice, bad, bad, [*HEALTHY, END])
    assert result.speech_tokens == tuple(HEALTHY) and result.finish_reason == "stop" and result.retries == 2
    assert limits == [Bounds.of(TEXT).most] * 3


@pytest.mark.parametrize(("bad", "reason"), [(CIRCLES, "runaway"), (ENDLESS, "runaway"), (HASTY, "hasty")])
def test_attempts_are_few(voice: Voice, bad: list[int], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "chatterbox_vllm")
    result, limits = speak(voice, *[bad] * 9)
    assert result.error is None and result.finish_reason == reason and result.retries == 2 and len(limits) == 3
    assert "at every attempt" in caplog.text
    if bad is CIRCLES:
        assert result.speech_tokens == tuple(CIRCLES[:50])


def test_of_bad_attempts_the_most_usual_is_heard(voice: Voice) -> None:
    result, _ = speak(voice, ENDLESS, CIRCLES, [END])
    assert result.speech_tokens == tuple(CIRCLES[:50]) and result.finish_reason == "runaway"


def test_a_stream_is_ended(voice: Voice) -> None:
    result, limits = speak(voice, CIRCLES, [*HEALTHY, END], delivery=Delivery.STREAM)
    assert result.finish_reason == "runaway" and result.retries == 0 and len(limits) == 1
    assert len(result.speech_tokens) <= 50 + 60  # what was told before it was found is out


def test_a_stream_of_which_nothing_is_out_is_tried_again(voice: Voice) -> None:
    result, _ = speak(voice, [END], [*HEALTHY, END], delivery=Delivery.STREAM)
    assert result.speech_tokens == tuple(HEALTHY) and result.finish_reason == "stop" and result.retries == 1


@pytest.mark.parametrize(
    ("heads", "options", "followed"),
    [
        (((0, 0),), {}, True),
        ((), {}, False),
        (((0, 0),), {"guarded": False}, False),
        (((0, 0),), {"uniforms": [0.5] * 400}, False),
    ],
)
def test_the_text_is_followed_where_a_model_has_heads_for_it(
    voice: Voice, heads: tuple, options: dict, followed: bool
) -> None:
    script, _ = scripted([*HEALTHY, END])
    engine = Engine(script, max_model_len=900)
    engine.scheduler.at_t3.config = replace(CONFIG, alignment_heads=heads)
    engine.scheduler.at_t3.guarded = options.pop("guarded", True)
    request = SpeechRequest(TEXT, voice, SpeechParameters(max_tokens=400), **options)
    assert next(iter(engine.run([request]))).error is None
    early = Bounds.of(TEXT).early
    assert engine.talker.ends_held == [early if followed else None]
    assert len(HEALTHY) < early < Bounds.of(TEXT).most


@pytest.mark.parametrize("options", [{"guarded": False}, {"uniforms": [0.5] * 400}])
def test_what_is_not_guarded_stays_as_it_is(voice: Voice, options: dict) -> None:
    result, limits = speak(voice, CIRCLES, **options)
    assert result.speech_tokens == tuple(CIRCLES) and result.retries == 0 and limits == [400]
    assert CONFIG.start_speech_token > max(CIRCLES)
