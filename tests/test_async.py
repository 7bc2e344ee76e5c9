"""`AsyncChatterbox` on the babbling model: many tasks, chunks, aborts, and nothing left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import (
    AbortedError,
    AsyncChatterbox,
    ChatterboxTTS,
    ConfigError,
    DeadlineError,
    GenerationError,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
)

TEXT = "A good deal longer than that, I should say."
LONG = " ".join(f"This is sentence number {n}, and it says very little." for n in range(12))


@pytest.fixture(scope="module")
def tts(babbler: Path) -> Iterator[ChatterboxTTS]:
    with ChatterboxTTS.from_local(babbler, "cpu", max_batch_size=4, watermark=False) as model:
        yield model


def request(tts: ChatterboxTTS, text: str = TEXT, seed: int = 1, **options: object) -> SpeechRequest:
    return SpeechRequest(text, tts.conds, SpeechParameters(seed=seed), **options)


def test_many_tasks_get_what_they_asked_for(tts: ChatterboxTTS) -> None:
    async def main() -> None:
        async with AsyncChatterbox(tts) as engine:
            results = await asyncio.gather(*(engine.speak(request(tts, seed=n)) for n in range(10)))
            stats = engine.stats()
        assert stats.completed == 10 and stats.failed == stats.unfinished == stats.kv_blocks_in_use == 0
        assert stats.audio_seconds == pytest.approx(sum(len(r.audio) for r in results) / tts.sr)
        alone = tts.generate(TEXT, seed=3)[0]
        assert (results[3].audio - alone).norm() / alone.norm() < 1e-3
        assert all(0 < r.timings.talking <= r.timings.total for r in results)

    asyncio.run(main())


def test_chunks_are_the_whole_and_come_before_it(tts: ChatterboxTTS) -> None:
    async def main() -> None:
        async with AsyncChatterbox(tts) as engine:
            chunks, before_the_end = [], 0
            async for chunk in engine.generate(request(tts, LONG), "long"):
                chunks.append(chunk.audio)
                before_the_end += engine.stats().unfinished
            whole = await engine.speak(request(tts, LONG))
        assert len(chunks) == whole.segments > 1
        assert before_the_end >= 1  # the first chunk was there while others were being made
        assert sum(map(len, chunks)) == len(whole.audio)
        assert (torch.cat(chunks) - whole.audio).norm() / whole.audio.norm() < 1e-3

    asyncio.run(main())


def test_errors_reach_their_own_task(tts: ChatterboxTTS) -> None:
    async def main() -> None:
        async with AsyncChatterbox(tts) as engine:
            fine = asyncio.create_task(engine.speak(request(tts)))
            with pytest.raises(ConfigError, match="no text"):
                async for _ in engine.generate(request(tts, " ")):
                    pass
            late = await engine.speak(request(tts, LONG, deadline=0.01))
            assert isinstance(late.error, DeadlineError)
            task = asyncio.create_task(engine.speak(request(tts, LONG), "twice"))
            await asyncio.sleep(0)
            with pytest.raises(ConfigError, match="'twice'"):
                await engine.speak(request(tts), "twice")
            engine.abort("twice")
            assert isinstance((await task).error, AbortedError)
            assert (await fine).error is None
            assert engine.stats().kv_blocks_in_use == 0

    asyncio.run(main())


def test_leaving_frees(tts: ChatterboxTTS) -> None:
    async def main() -> None:
        async with AsyncChatterbox(tts) as engine:
            async for _ in engine.generate(request(tts, LONG)):
                break
            task = asyncio.create_task(engine.speak(request(tts, LONG)))
            await asyncio.sleep(0.1)
            task.cancel()
            for _ in range(200):
                await asyncio.sleep(0.02)
                if not engine.stats().unfinished:
                    break
            stats = engine.stats()
            assert stats.unfinished == stats.talking == stats.waiting_for_voice == stats.kv_blocks_in_use == 0
            assert stats.failed == 2

    asyncio.run(main())


def test_closing_ends_everything_and_gives_the_model_back(tts: ChatterboxTTS) -> None:
    async def main() -> None:
        engine = AsyncChatterbox(tts)
        with pytest.raises(ConfigError, match="in use"):
            tts.generate(TEXT)
        task = asyncio.create_task(engine.speak(request(tts, LONG)))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(engine.close)
        assert isinstance((await task).error, AbortedError)
        with pytest.raises(GenerationError, match="closed"):
            await engine.speak(request(tts))

    asyncio.run(main())
    assert tts.generate(TEXT, seed=1).shape[0] == 1


def test_a_broken_engine_is_heard_of(tts: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[SpeechResult] = []

    async def main() -> None:
        async with AsyncChatterbox(tts, told.append) as engine:
            assert engine.failure is None
            with monkeypatch.context() as patch:
                patch.setattr(tts.t3_stage, "step", lambda should_yield: 1 / 0)
                with pytest.raises(GenerationError, match="ZeroDivisionError"):
                    await engine.speak(request(tts), "broken")
            assert isinstance(engine.failure, ZeroDivisionError) and engine.stats().failed == 1
            engine.abort("broken")
            with pytest.raises(GenerationError, match="closed"):
                await engine.speak(request(tts))

    asyncio.run(main())
    assert [(r.request_id, r.seed, type(r.error)) for r in told] == [("broken", 1, GenerationError)]


def test_a_request_that_comes_as_the_engine_breaks_is_answered(
    tts: ChatterboxTTS, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = threading.Event(), threading.Event()

    def fail() -> None:
        reached.set()
        go.wait(5)
        raise ZeroDivisionError

    async def main() -> None:
        async with AsyncChatterbox(tts) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(tts.t3_stage, "step", fail)
                first = asyncio.create_task(engine.speak(request(tts)))
                await asyncio.to_thread(reached.wait, 5)
                second = asyncio.create_task(engine.speak(request(tts)))  # handed in, and never looked at
                await asyncio.sleep(0.02)
                go.set()
                done = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 5)
            assert [type(error) for error in done] == [GenerationError] * 2

    asyncio.run(main())


def test_every_result_is_told_and_a_listener_that_fails_harms_nothing(
    tts: ChatterboxTTS, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[SpeechResult] = []

    def listen(result: SpeechResult) -> None:
        told.append(result)
        raise RuntimeError("the listener is broken")

    async def main() -> None:
        async with AsyncChatterbox(tts, on_result=listen) as engine:
            spoken = await engine.speak(request(tts), "spoken")
            assert [chunk async for chunk in engine.generate(request(tts), "streamed")]
            async for _ in engine.generate(request(tts, LONG), "left"):
                break
            late = await engine.speak(request(tts, LONG, deadline=0.01), "late")
        assert spoken.audio is not None and isinstance(late.error, DeadlineError)

    asyncio.run(main())
    found = {result.request_id: type(result.error) for result in told}
    assert found == {"spoken": type(None), "streamed": type(None), "left": AbortedError, "late": DeadlineError}
    assert caplog.text.count("on_result failed") == 4
