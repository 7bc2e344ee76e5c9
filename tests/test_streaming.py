"""Streams through the engine: how they are cut, what comes out, what others do to them."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from chatterbox_vllm import AbortedError, AudioChunk, ConfigError, SpeechParameters, SpeechRequest, SpeechResult, Voice
from chatterbox_vllm.engine.chunks import QUICK, STEADY, ChunkPlan
from chatterbox_vllm.engine.request import Delivery
from chatterbox_vllm.engine.shares import TimeShares
from chatterbox_vllm.engine.synthesis import ThreadedSynthesis
from chatterbox_vllm.engine.to_speak import ChunkToSpeak, TokensToSpeak
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.sampling import Sampling

from .fakes import CONFIG, END, UNLUCKY, Engine, a_voice

PLAN = ChunkPlan(first=(5, 10), later=(8,))
LOOKAHEAD = 3
LONG = " ".join(f"This is sentence number {n}, and it says very little." for n in range(20))


@pytest.fixture(scope="module")
def voice() -> Voice:
    return a_voice()


def counting(length: int):
    def script(rows: int, sampling: Sampling) -> list[int]:
        return [*range(100, 100 + length), END]

    return script


def make(script, **options: object) -> Engine:
    engine = Engine(script, max_model_len=2000, **options)
    engine.scheduler.chunk_plan = PLAN
    engine.prompts.builder = PromptBuilder(replace(CONFIG, text_positions=900)).requires_grad_(False)
    return engine


def listen(engine: Engine, requests: dict[str, SpeechRequest], delivery: Delivery = Delivery.STREAM) -> list:
    for label, request in requests.items():
        engine.scheduler.submit(request, label, delivery=delivery)
    events = []
    while engine.scheduler.unfinished:
        for event in engine.scheduler.step():
            events.append(event)
            if isinstance(event, AudioChunk):
                engine.scheduler.taken(event.serial, len(event.audio))
    return events


def a_request(voice: Voice, text: str = "Hello.", seed: int = 1, **options: object) -> SpeechRequest:
    return SpeechRequest(text, voice, SpeechParameters(max_tokens=200, seed=seed), **options)


@pytest.mark.parametrize("length", [1, 4, 7, 8, 9, 17, 18, 21, 40])
def test_nothing_is_dropped_or_doubled(voice: Voice, length: int) -> None:
    engine = make(counting(length))
    *chunks, result = listen(engine, {"a": a_request(voice)})
    assert isinstance(result, SpeechResult) and result.error is None and result.audio is None
    whole = torch.cat([chunk.audio for chunk in chunks])
    assert whole[:-1].tolist() == list(range(100, 100 + length))  # the last sample is the end's noise
    starts = [0, *torch.tensor([len(chunk.audio) for chunk in chunks]).cumsum(0).tolist()]
    assert [chunk.start for chunk in chunks] == starts[:-1] and result.samples == starts[-1] == length + 1
    assert result.speech_tokens == tuple(range(100, 100 + length)) and result.finish_reason == "stop"
    assert 0 < result.timings.first_audio <= result.timings.total
    assert len(chunks) == 1 if length < 8 else len(chunks) > 1


def test_audio_comes_while_t3_speaks(voice: Voice) -> None:
    engine = make(counting(100))
    engine.scheduler.submit(a_request(voice), "a", delivery=Delivery.STREAM)
    steps = 0
    while not any(isinstance(event, AudioChunk) for event in engine.scheduler.step()):
        steps += 1
    assert steps <= PLAN.first[0] + LOOKAHEAD + 1 and engine.talker.running


def test_how_a_stream_is_cut_does_not_depend_on_others(voice: Voice) -> None:
    def cuts(others: int, delivery: Delivery) -> list[int]:
        engine = make(counting(60), max_batch_size=8)
        for n in range(others):
            engine.scheduler.submit(a_request(voice, seed=n), delivery=delivery)
        events = listen(engine, {"mine": a_request(voice)})
        return [len(event.audio) for event in events if event.request_id == "mine" and isinstance(event, AudioChunk)]

    alone = cuts(0, Delivery.WHOLE)
    assert alone[:3] == [5, 10, 10]
    assert cuts(7, Delivery.STREAM) == cuts(5, Delivery.WHOLE) == cuts(3, Delivery.SEGMENTS) == alone


def test_streams_alone_continue_behind_a_shorter_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = FlowPrompt(torch.arange(20), torch.randn(41, 80), torch.ones(192))
    engine = make(counting(40))
    engine.scheduler.chunk_plan = replace(PLAN, prompt=6)
    seen: list[FlowPrompt] = []
    start, draw = engine.s3gen.start_stream, engine.s3gen.draw_noise
    monkeypatch.setattr(engine.s3gen, "start_stream", lambda own, seed: (seen.append(own), start(own, seed))[1])
    listen(engine, {"a": a_request(replace(a_voice(), prompt=prompt))})
    assert len(seen) == 1 and torch.equal(seen[0].tokens, prompt.tokens[-6:])
    assert torch.equal(seen[0].mel, prompt.mel[-13:])  # that of the last half token, too
    monkeypatch.setattr(
        engine.s3gen, "draw_noise", lambda seed, tokens, own: (seen.append(own), draw(seed, tokens, own))[1]
    )
    listen(engine, {"a": a_request(replace(a_voice(), prompt=prompt))}, Delivery.WHOLE)
    assert seen[1:] == [prompt]


def test_streams_share_batches(voice: Voice) -> None:
    engine = make(counting(30), max_batch_size=4)
    events = listen(engine, {f"r{n}": a_request(voice, seed=n) for n in range(4)})
    assert sum(isinstance(event, SpeechResult) for event in events) == 4
    assert max(engine.s3gen.batches) == 4


def test_the_segments_of_a_text_follow_in_order_with_their_pauses(voice: Voice) -> None:
    engine = make(counting(50), max_batch_size=3)
    events = listen(engine, {"book": a_request(voice, LONG)})
    *chunks, result = events
    assert result.error is None and result.segments > 3
    assert result.speech_tokens == tuple(range(100, 150)) * result.segments
    assert engine.talker.most <= 2  # one that is heard, one that comes next
    audio = torch.cat([chunk.audio for chunk in chunks]).numpy()
    (whole,) = listen(engine, {"whole": a_request(voice, LONG)}, Delivery.WHOLE)
    assert len(audio) == len(whole.audio)
    sounding = np.flatnonzero(np.diff(audio != 0) & (audio[1:] != 0))  # where a piece begins after its pause
    assert len(sounding) == result.segments - 1


def test_a_listener_who_takes_nothing_stops_the_work(voice: Voice) -> None:
    engine = make(counting(100))
    engine.scheduler.max_untaken = 12 / 24_000
    serial = engine.scheduler.submit(a_request(voice), "slow", delivery=Delivery.STREAM)
    events = [event for _ in range(200) for event in engine.scheduler.step(0.0)]
    assert sum(len(event.audio) for event in events) == 15 and engine.scheduler.blocked
    for event in events:
        engine.scheduler.taken(serial, len(event.audio))
    while engine.scheduler.unfinished:
        for event in engine.scheduler.step(0.0):
            events.append(event)
            engine.scheduler.taken(serial, getattr(event, "samples", 0) or len(event.audio))
    assert events[-1].samples == 101


def test_an_abort_in_the_middle_frees_everything(voice: Voice) -> None:
    for steps in range(1, 40, 3):
        engine = make(counting(60))
        serial = engine.scheduler.submit(a_request(voice, LONG), "gone", delivery=Delivery.STREAM)
        events = [event for _ in range(steps) for event in engine.scheduler.step()]
        assert engine.scheduler.abort(serial)
        events += engine.scheduler.step()
        assert isinstance(events[-1].error, AbortedError)
        assert events[-1].samples == sum(len(event.audio) for event in events[:-1])
        scheduler = engine.scheduler
        assert not engine.talker.running and not engine.voicing.busy and scheduler.unfinished == 0
        assert not scheduler._streams and not scheduler.at_s3gen._pieces and not len(scheduler.admission)


def test_what_goes_wrong_with_a_stream_is_its_own(voice: Voice) -> None:
    def script(rows: int, sampling: Sampling) -> list[int]:
        return [*range(100, 120), UNLUCKY, 7, END] if sampling.max_tokens == 49 else [*range(100, 130), END]

    engine = make(script)
    unlucky = SpeechRequest("Hello.", voice, SpeechParameters(max_tokens=49, seed=1))
    noise = S3GenNoise(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    events = listen(engine, {"fine": a_request(voice), "bad": unlucky, "noise": a_request(voice, noise=noise)})
    results = {event.request_id: event for event in events if isinstance(event, SpeechResult)}
    assert results["fine"].error is None and results["fine"].samples == 31
    assert "unlucky" in str(results["bad"].error) and isinstance(results["noise"].error, ConfigError)


def test_a_short_rest_goes_with_the_chunk_before_it(voice: Voice) -> None:
    def sizes(tokens: int) -> list[int]:
        engine = make(counting(tokens))
        engine.scheduler.chunk_plan = ChunkPlan(first=(5, 10, 20), later=(8,), shortest=6)
        *chunks, result = listen(engine, {"one": a_request(voice)})
        assert result.error is None and result.samples == tokens + 1  # and one of noise
        return [len(chunk.audio) for chunk in chunks]

    assert sizes(60) == [5, 10, 20, 26]
    assert sizes(61) == [5, 10, 20, 20, 7]
    assert sizes(17) == [5, 13]  # the second chunk's rest is shorter than what it looks ahead
    assert sizes(19) == [5, 10, 5]  # nothing is waited for before the third chunk


def test_t3_tells_tokens_together_and_the_first_chunk_at_once() -> None:
    assert [plan.told_every(3) for plan in (QUICK, STEADY, PLAN)] == [9, 8, 7]
    assert ChunkPlan(first=(1,), later=(1,)).told_every(1) == 1
    awaited = QUICK.known(0, 0, 3)
    assert awaited == 19 and (awaited - 1) % 9 == 0


def test_chunk_plans_are_checked() -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        ChunkPlan(first=(5, 0), later=(5,))
    with pytest.raises(ConfigError, match="at least one token"):
        ChunkPlan(first=(5,), later=())
    with pytest.raises(ConfigError, match="a prompt of at least one token"):
        replace(PLAN, prompt=0)


def test_streams_go_first_and_whole_utterances_are_not_forgotten(voice: Voice) -> None:
    def chunk(due: float) -> ChunkToSpeak:
        return ChunkToSpeak((1, 2), 1, False, voice, 10, 0, due=due)

    def whole(waited: float) -> TokensToSpeak:
        return TokensToSpeak((1,), voice, 10, 0, since=now - waited)

    now = time.monotonic()
    assert TimeShares().next([whole(0)]) is TokensToSpeak and TimeShares().next([chunk(0)]) is ChunkToSpeak
    assert TimeShares().next([whole(0), chunk(now)]) is ChunkToSpeak
    assert TimeShares().next([whole(0), chunk(now + 60)]) is TokensToSpeak  # its listener has enough
    shares = TimeShares()
    assert shares.next([chunk(now), whole(10)]) is TokensToSpeak  # it has waited long enough
    assert shares.next([chunk(now), whole(10)]) is ChunkToSpeak  # and again only after a while
    assert shares.streaming and not TimeShares().streaming


def test_the_nearest_to_running_dry_go_first(voice: Voice) -> None:
    engine = Engine(counting(1), max_batch_size=2)
    chunks = [
        ChunkToSpeak((1, 2), 1, False, voice, 10, 0, priority=p, due=d) for p, d in ((0, 9), (0, 5), (1, 1), (0, 7))
    ]
    assert engine.voicing.stage.choose(chunks) == [1, 3]


def test_streams_beside_t3_in_a_thread(voice: Voice) -> None:
    """As on a GPU, where S3Gen has a thread of its own."""
    engine = make(counting(40))
    threaded = ThreadedSynthesis(engine.voicing.stage, None, torch.device("cpu"))
    engine.scheduler.at_s3gen.synthesis = threaded
    try:
        requests = {f"r{n}": a_request(voice, LONG, seed=n) for n in range(3)}
        events = listen(engine, requests)
        assert not threaded.busy
    finally:
        threaded.close()
    for result in (event for event in events if isinstance(event, SpeechResult)):
        chunks = [event for event in events if isinstance(event, AudioChunk) and event.serial == result.serial]
        assert result.error is None and sum(len(chunk.audio) for chunk in chunks) == result.samples
        assert result.speech_tokens == tuple(range(100, 140)) * result.segments
