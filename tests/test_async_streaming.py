"""Streams through `AsyncChatterbox` and `ChatterboxTTS` on the babbling model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import (
    AsyncChatterbox,
    AudioChunk,
    ChatterboxTTS,
    ConfigError,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
)
from chatterbox_vllm.engine.request import Delivery

from .fakes import a_voice

TEXT = "A good deal longer than that, I should say, and long enough for some chunks."


@pytest.fixture(scope="module")
def tts(babbler: Path) -> Iterator[ChatterboxTTS]:
    with ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=4, watermark=False) as model:
        yield model


def request(tts: ChatterboxTTS, text: str = TEXT, seed: int = 1, **options: object) -> SpeechRequest:
    return SpeechRequest(text, tts.conds, SpeechParameters(seed=seed), **options)


def audio_of(events: list) -> torch.Tensor:
    return torch.cat([event.audio for event in events if isinstance(event, AudioChunk)])


async def listen(engine: AsyncChatterbox, request: SpeechRequest) -> list:
    async with contextlib.aclosing(engine.generate(request, stream=True)) as events:
        return [event async for event in events]


def test_a_stream_is_the_same_audio_alone_and_among_others(tts: ChatterboxTTS) -> None:
    async def main() -> tuple[list, SpeechResult]:
        async with AsyncChatterbox(tts) as engine:
            others = [listen(engine, request(tts, TEXT[: 12 * n], seed=n)) for n in range(2, 5)]
            mine, whole, *_ = await asyncio.gather(listen(engine, request(tts)), engine.speak(request(tts)), *others)
            assert engine.stats().kv_blocks_in_use == engine.stats().unfinished == 0
            return mine, whole

    *chunks, result = asyncio.run(main())[0]
    among, whole = asyncio.run(main())
    assert len(chunks) > 2 and isinstance(result, SpeechResult) and result.seed == 1
    assert 0 < result.timings.first_audio < result.timings.total and result.finish_reason == "stop"
    alone = list(tts.generate_stream(TEXT, seed=1))
    assert [event.start for event in alone[:-1]] == [event.start for event in among[:-1]]
    spoken = audio_of(alone)
    assert len(spoken) == result.samples == len(whole.audio) == alone[-1].samples
    assert alone[-1].speech_tokens == whole.speech_tokens
    assert (audio_of(among) - spoken).norm() / spoken.norm() < 1e-3


def test_a_shorter_prompt_changes_streams_alone(tts: ChatterboxTTS, babbler: Path) -> None:
    tokens = len(tts.conds.prompt.tokens)
    with ChatterboxTTS.from_local(
        babbler, "cpu", max_batch_size=4, watermark=False, stream_prompt_seconds=1
    ) as shortened:
        assert (tts.settings["stream prompt s"], shortened.settings["stream prompt s"]) == (10, 1) and tokens > 25

        async def main() -> list:
            async with AsyncChatterbox(shortened) as engine:
                others = [listen(engine, request(tts, TEXT[: 12 * n], seed=n)) for n in range(2, 5)]
                mine, whole, *_ = await asyncio.gather(
                    listen(engine, request(tts)), engine.speak(request(tts)), *others
                )
                return [audio_of(mine), whole.audio]

        among, whole = asyncio.run(main())
        alone = audio_of(list(shortened.generate_stream(TEXT, seed=1)))
    behind_all = audio_of(list(tts.generate_stream(TEXT, seed=1)))
    assert torch.equal(whole, tts.generate(TEXT, seed=1)[0])
    assert len(alone) == len(behind_all) and (alone - behind_all).norm() / alone.norm() > 1e-2
    assert (among - alone).norm() / alone.norm() < 1e-3


def test_leaving_a_stream_frees(tts: ChatterboxTTS) -> None:
    async def main() -> None:
        async with AsyncChatterbox(tts) as engine:
            async with contextlib.aclosing(engine.generate(request(tts), stream=True)) as events:
                async for event in events:
                    assert isinstance(event, AudioChunk) and event.start == 0
                    break
            for _ in range(200):
                await asyncio.sleep(0.02)
                if not engine.stats().unfinished:
                    break
            stats = engine.stats()
            assert stats.unfinished == stats.talking == stats.waiting_for_voice == stats.kv_blocks_in_use == 0
            assert stats.failed == 1 and stats.untaken_seconds == 0

    asyncio.run(main())
    events = tts.generate_stream(TEXT, seed=1)
    next(events)
    with pytest.raises(ConfigError, match="in use"):
        tts.generate(TEXT)
    events.close()
    assert tts.t3_stage.kv_blocks_in_use == 0
    assert len(tts.generate("Again.", seed=1)[0])


def test_a_stream_that_cannot_be_raises(tts: ChatterboxTTS) -> None:
    with pytest.raises(ConfigError, match="no text"):
        list(tts.generate_stream(" "))
    with pytest.raises(ConfigError, match="temperature"):
        tts.generate_stream(TEXT, temperature=-1)

    async def main() -> None:
        async with AsyncChatterbox(tts) as engine:
            with pytest.raises(ConfigError, match="no text"):
                await listen(engine, request(tts, " "))

    asyncio.run(main())


class HandCranked:
    """A scheduler that does one step each time the test says so, and gives out a chunk of request 0 in each."""

    def __init__(self) -> None:
        self.admission = SimpleNamespace(max_admitted=4, reserved=0)
        self.unfinished, self.blocked = 1, False
        self.may, self.stands = threading.Semaphore(0), threading.Semaphore(0)

    def submit(self, request: SpeechRequest, label: str, delivery: Delivery) -> int:
        return 0

    def step(self, patience: float) -> list[AudioChunk]:
        self.stands.release()
        assert self.may.acquire(timeout=30)
        return [AudioChunk(0, "", torch.zeros(8), 0)]

    def stand(self) -> None:
        """Wait until the engine is in a step."""
        assert self.stands.acquire(timeout=30)

    def taken(self, serial: int, samples: int) -> None: ...

    def abort(self, serial: int) -> None: ...

    def abort_all(self) -> None: ...


def test_who_leaves_ends_a_turn_and_what_was_taken_does_not() -> None:
    scheduler = HandCranked()
    model = SimpleNamespace(sr=24_000, lend_scheduler=lambda close: (scheduler, None), return_scheduler=lambda: None)
    asked = SpeechRequest("Some words.", a_voice(), SpeechParameters(seed=1))

    async def main() -> list[bool]:
        async with AsyncChatterbox(model) as engine:
            events = engine.generate(asked, "one", stream=True)
            chunk = asyncio.create_task(anext(events))
            while not chunk.done():
                await asyncio.to_thread(scheduler.stand)
                scheduler.may.release()
                await asyncio.sleep(0.01)
            await asyncio.to_thread(scheduler.stand)
            scheduler.may.release()  # the next step begins when the engine has looked at all that was asked
            await asyncio.to_thread(scheduler.stand)
            await anext(events)
            found = [scheduler.should_yield()]
            await events.aclose()
            found.append(scheduler.should_yield())
            scheduler.may.release(100)
        return found

    assert asyncio.run(main()) == [False, True]
