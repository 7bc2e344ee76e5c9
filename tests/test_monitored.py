"""`MonitoredChatterbox`: when it steps, what happens to requests meanwhile, and what becomes of steps that fail."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import (
    AudioChunk,
    ChatterboxTTS,
    ConfigError,
    DeviceError,
    GenerationError,
    QuantizationConfig,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
)
from chatterbox_vllm.serving import monitored
from chatterbox_vllm.serving.monitor import MonitorLimits, Rollback
from chatterbox_vllm.serving.monitored import MonitoredChatterbox

NF4 = QuantizationConfig("bnb-4bit", "bnb-4bit", None)
SINGLE = QuantizationConfig("bnb-4bit", "bnb-4bit", None, double_quant=False)
LIMITS = MonitorLimits(failure_rate=0.5, window=10, least=2)
AT_ONCE = MonitorLimits(failure_rate=0.0, window=10, least=1)


class Model:
    """Stands for a loaded `ChatterboxTTS`; `events` is what happened to all of them."""

    def __init__(self, config: QuantizationConfig, events: list[str]):
        self.config, self.events = config, events
        self.quantization = config
        self.conds = object()
        events.append(f"load {config}")

    def get_quantization_info(self) -> dict[str, Any]:
        size = 0.516 if self.config.double_quant else 0.5625
        info = {name: {"method": m, "bytes_per_weight": size} for name, m in self.config.methods.items()}
        return {**info, "voice_encoder": None}

    def shutdown(self) -> None:
        self.events.append("shutdown")


class Engine:
    """Stands for `AsyncChatterbox`: a request's text says what becomes of it, "wait" until `release` is set.

    A request of the text "die", and every one after it, meets an engine that failed.
    """

    release: asyncio.Event

    def __init__(self, tts: Model, on_result: Callable[[SpeechResult], object]):
        self.tts, self.on_result = tts, on_result
        self.failure: Exception | None = None

    async def speak(self, request: SimpleNamespace, request_id: str | None = None) -> SpeechResult:
        if request.text == "wait":
            await self.release.wait()
        if request.text == "die" or self.failure is not None:
            self.failure = ZeroDivisionError("dead")
            await asyncio.to_thread(
                self.on_result, SpeechResult(0, "r", 0, 1, error=GenerationError("the engine failed"))
            )
            raise GenerationError("the engine failed")
        if request.text == "refused":
            result = SpeechResult(0, "r", 0, 1, error=ConfigError("no such voice"))
            await asyncio.to_thread(self.on_result, result)
            return result
        failed = request.text == "bad"
        if failed:
            result = SpeechResult(0, "r", 0, 1, error=GenerationError("broken"))
        else:
            result = SpeechResult(0, "r", 0, 1, audio=torch.zeros(24_000), samples=24_000)
        await asyncio.to_thread(self.on_result, result)
        self.tts.events.append(f"{request.text} under {self.tts.config}")
        return result

    async def generate(self, request: SimpleNamespace, request_id: str | None = None) -> AsyncGenerator[Any, None]:
        if request.text == "chunks":
            yield AudioChunk(0, "r", torch.zeros(10))
        yield (await self.speak(request)).audio

    def close(self) -> None:
        self.tts.events.append("close")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(monitored, "AsyncChatterbox", Engine)
    return []


def request(text: str) -> Any:
    return SimpleNamespace(text=text)


def test_what_is_on_its_way_ends_first_and_the_rest_waits(events: list[str]) -> None:
    async def main() -> None:
        Engine.release = asyncio.Event()
        async with MonitoredChatterbox(lambda config: Model(config, events), NF4, LIMITS) as engine:
            voice = engine.voice
            slow = asyncio.create_task(engine.speak(request("wait")))
            await asyncio.sleep(0)
            assert (await engine.speak(request("bad"))).error is not None
            # A stream that nobody gets audio from counts as well.
            assert [chunk async for chunk in engine.generate(request("bad"))] == [None]
            later = asyncio.create_task(engine.speak(request("later")))
            await asyncio.sleep(0.05)
            assert not later.done() and events[-1].startswith("bad")  # nothing is loaded while one speaks
            assert engine.monitor.config == NF4
            Engine.release.set()
            await asyncio.gather(slow, later)
            assert [step.step for step in engine.steps] == [Rollback.DOUBLE_QUANT]
            assert engine.tts.config == engine.monitor.config == SINGLE
            assert engine.monitor.figures.results == 1  # "later"; "wait" belongs to the model before
            assert engine.voice is not voice
        with pytest.raises(GenerationError, match="this was closed"):
            await engine.speak(request("too late"))
        with pytest.raises(ConfigError, match="no model at this moment"):
            _ = engine.tts

    asyncio.run(main())
    assert events == [
        f"load {NF4}", f"bad under {NF4}", f"bad under {NF4}", f"wait under {NF4}", "close", "shutdown",
        f"load {SINGLE}", f"later under {SINGLE}", "close", "shutdown",
    ]  # fmt: skip


def test_a_step_that_fails_brings_the_model_back(events: list[str], caplog: pytest.LogCaptureFixture) -> None:
    def load(config: QuantizationConfig) -> Any:
        if not config.double_quant:
            raise DeviceError("no room for it")
        return Model(config, events)

    async def main() -> None:
        async with MonitoredChatterbox(load, NF4, LIMITS) as engine:
            for _ in range(5):
                await engine.speak(request("bad"))
            assert engine.steps == [] and engine.monitor.config == engine.tts.config == NF4
            # It still watches, and does not try again.
            assert engine.monitor.figures.failure_rate == 1.0 and engine.monitor.figures.results == 5

    asyncio.run(main())
    assert events.count(f"load {NF4}") == 2 and "no room for it" in caplog.text


def test_a_model_that_is_gone_for_good_is_an_error(events: list[str]) -> None:
    def load(config: QuantizationConfig) -> Any:
        if events:
            raise OSError("the disk is gone")
        return Model(config, events)

    async def main() -> None:
        async with MonitoredChatterbox(load, NF4, LIMITS) as engine:
            await engine.speak(request("bad"))
            await engine.speak(request("bad"))
            with pytest.raises(GenerationError, match="the disk is gone"):
                await engine.speak(request("next"))

    asyncio.run(main())


def test_a_loader_that_gives_something_else_is_refused(events: list[str]) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="asked for t3 bnb-4bit and gave not quantized"):
            async with MonitoredChatterbox(lambda config: Model(QuantizationConfig(), events), NF4):
                pass

    asyncio.run(main())
    assert events[-1] == "shutdown"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (QuantizationConfig("bnb-4bit", "bnb-4bit", "bnb-4bit"), "t3 bnb-4bit without double quantization and gave"),
        (QuantizationConfig("bnb-4bit", "bnb-4bit", "bnb-8bit", False), "voice_encoder bnb-4bit without .* gave bnb-8"),
    ],
)
def test_a_step_that_changes_nothing_is_not_taken(
    events: list[str], caplog: pytest.LogCaptureFixture, given: QuantizationConfig, error: str
) -> None:
    nf4 = QuantizationConfig("bnb-4bit", "bnb-4bit", "bnb-4bit")

    async def main() -> None:
        load = iter([nf4, given, nf4])
        async with MonitoredChatterbox(lambda config: Model(next(load), events), nf4, AT_ONCE) as engine:
            await engine.speak(request("bad"))
            await engine.speak(request("good"))
            assert engine.steps == [] and engine.monitor.config == engine.tts.config == nf4

    asyncio.run(main())
    assert re.search(error, caplog.text)


def test_opened_again_it_starts_afresh_with_the_configuration_it_had(events: list[str]) -> None:
    service = MonitoredChatterbox(lambda config: Model(config, events), NF4, AT_ONCE)

    async def main() -> None:
        with pytest.raises(GenerationError, match="this was not opened"):
            await service.speak(request("early"))
        async with service:
            with pytest.raises(ConfigError, match="open already"):
                await service.__aenter__()
            await service.speak(request("bad"))
            await service.speak(request("good"))
        async with service:
            assert service.tts.config == service.monitor.config == SINGLE and service.monitor.figures.results == 0
            await service.speak(request("bad"))
            await service.speak(request("good"))
            assert [step.step for step in service.steps] == [Rollback.DOUBLE_QUANT, Rollback.S3GEN]

    asyncio.run(main())
    assert events[-2:] == ["close", "shutdown"] and events.count("shutdown") == 4


def test_opened_again_after_the_model_was_gone_it_steps_again(events: list[str]) -> None:
    trouble = [False, True, True, False, False]

    def load(config: QuantizationConfig) -> Any:
        if trouble.pop(0):
            raise OSError("the disk is gone")
        return Model(config, events)

    async def main() -> None:
        service = MonitoredChatterbox(load, NF4, AT_ONCE)
        async with service:
            await service.speak(request("bad"))
            with pytest.raises(GenerationError, match="the disk is gone"):
                await service.speak(request("next"))
        async with service:
            assert service.tts.config == service.monitor.config == NF4
            await service.speak(request("bad"))
            await service.speak(request("good"))
            assert service.tts.config == SINGLE

    asyncio.run(main())
    assert events.count("shutdown") == 3


def test_a_step_waits_for_a_paused_stream_only_so_long(events: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "chatterbox_vllm")  # which a command of another test may have raised

    async def main() -> None:
        limits = MonitorLimits(failure_rate=0.0, window=10, least=3)
        async with MonitoredChatterbox(lambda c: Model(c, events), NF4, limits, patience=0.3) as engine:
            stream = engine.generate(request("chunks"))
            await stream.__anext__()
            for _ in range(3):
                await engine.speak(request("bad"))
            # Requests from within the stream while the step is due: the first waits for it, the second does not again.
            assert (await asyncio.wait_for(engine.speak(request("inner")), 5)).error is None
            assert caplog.text.count("is put off") == 1 and engine.tts.config == engine.monitor.config == NF4
            await asyncio.wait_for(engine.speak(request("inner")), 0.2)
            assert [chunk async for chunk in stream]
            await engine.speak(request("later"))
            assert [step.step for step in engine.steps] == [Rollback.DOUBLE_QUANT]

    asyncio.run(main())


@pytest.mark.parametrize("wrong", [0, -1.0, True, "x", float("nan")])
def test_patience_is_a_positive_number(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="patience"):
        MonitoredChatterbox(lambda config: None, NF4, patience=wrong)  # type: ignore[arg-type,return-value]


def test_an_engine_that_failed_is_loaded_anew(events: list[str]) -> None:
    async def main() -> None:
        async with MonitoredChatterbox(lambda config: Model(config, events), NF4) as engine:
            for _ in range(3):
                with pytest.raises(GenerationError, match="the engine failed"):
                    await engine.speak(request("die"))
                assert (await engine.speak(request("good"))).error is None
            assert engine.tts.config == NF4 and engine.monitor.figures.results == 6
            assert engine.monitor.figures.failure_rate == 0.5

    asyncio.run(main())
    assert events.count(f"load {NF4}") == events.count("shutdown") == 4


def test_an_engine_that_fails_at_once_again_is_given_up(events: list[str]) -> None:
    async def main() -> None:
        service = MonitoredChatterbox(lambda config: Model(config, events), NF4)
        async with service:
            for _ in range(2):
                with pytest.raises(GenerationError):
                    await service.speak(request("die"))
            with pytest.raises(GenerationError, match="and again before a request succeeded: dead"):
                await service.speak(request("good"))
            assert events.count(f"load {NF4}") == 2
        async with service:
            with pytest.raises(GenerationError):
                await service.speak(request("die"))
            assert (await service.speak(request("good"))).error is None
        with pytest.raises(GenerationError, match="this was closed"):
            await service.speak(request("late"))

    asyncio.run(main())
    assert events.count(f"load {NF4}") == events.count("shutdown") == 4


def test_requests_that_are_refused_are_no_failures_of_the_engine(events: list[str]) -> None:
    async def main() -> None:
        async with MonitoredChatterbox(lambda config: Model(config, events), NF4, LIMITS) as engine:
            for _ in range(5):
                assert isinstance((await engine.speak(request("refused"))).error, ConfigError)
            assert engine.monitor.figures.results == 0 and engine.steps == []
            # Nor do they count between two failures of the engine.
            with pytest.raises(GenerationError):
                await engine.speak(request("die"))
            await engine.speak(request("refused"))
            assert (await engine.speak(request("good"))).error is None

    asyncio.run(main())
    assert events.count(f"load {NF4}") == 2


def test_a_step_takes_an_engine_that_failed_along(events: list[str]) -> None:
    async def main() -> None:
        async with MonitoredChatterbox(lambda c: Model(c, events), NF4, AT_ONCE, patience=30) as engine:
            paused = engine.generate(request("chunks"))
            await paused.__anext__()
            with pytest.raises(GenerationError):
                await engine.speak(request("die"))
            assert (await asyncio.wait_for(engine.speak(request("good")), 2)).error is None
            assert engine.tts.config == SINGLE
            await paused.aclose()

    asyncio.run(main())
    assert events.count("shutdown") == 2


class Gate:
    """Stops what comes to it until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def stop(self) -> None:
        self.reached.set()
        assert self.opened.wait(5)

    async def until_reached(self) -> None:
        while not self.reached.is_set():
            await asyncio.sleep(0.005)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("again", [False, True])
def test_opening_that_is_cancelled_leaves_no_model(events: list[str], again: bool) -> None:
    gate = Gate()

    def load(config: QuantizationConfig) -> Any:
        gate.stop()
        return Model(config, events)

    async def main() -> None:
        service = MonitoredChatterbox(load, NF4)
        opening = asyncio.create_task(service.__aenter__())
        await gate.until_reached()
        await cancelled(opening)
        gate.opened.set()
        if again:
            async with service:  # one model at a time
                service._free(service._opening - 1)  # the first closing's, come late
                assert events == [f"load {NF4}", "close", "shutdown", f"load {NF4}"]

    asyncio.run(main())
    assert events == [f"load {NF4}", "close", "shutdown"] * (1 + again)


def test_closing_that_is_cancelled_frees_the_model(events: list[str]) -> None:
    gate = Gate()

    def load(config: QuantizationConfig) -> Any:
        if config == SINGLE:
            gate.stop()
        return Model(config, events)

    async def main() -> None:
        # A single thread, so that closing has to queue for it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        service = await MonitoredChatterbox(load, NF4, AT_ONCE).__aenter__()
        await service.speak(request("bad"))
        await gate.until_reached()
        closing = asyncio.create_task(service.__aexit__(None, None, None))
        await asyncio.sleep(0.01)
        await cancelled(closing)
        gate.opened.set()

    asyncio.run(main())
    assert events[-3:] == [f"load {SINGLE}", "close", "shutdown"]


def test_closing_while_a_step_frees_the_old_model_loads_nothing(events: list[str]) -> None:
    gate = Gate()

    class Slow(Model):
        def shutdown(self) -> None:
            gate.stop()
            super().shutdown()

    async def main() -> None:
        async with MonitoredChatterbox(lambda config: Slow(config, events), NF4, AT_ONCE) as engine:
            await engine.speak(request("bad"))
            await gate.until_reached()
            asyncio.get_running_loop().call_later(0.05, gate.opened.set)

    asyncio.run(main())
    assert events == [f"load {NF4}", f"bad under {NF4}", "close", "shutdown"]


def test_closing_while_a_step_is_due_loads_nothing(events: list[str]) -> None:
    async def main() -> None:
        async with MonitoredChatterbox(lambda config: Model(config, events), NF4, AT_ONCE) as engine:
            stream = engine.generate(request("chunks"))
            await stream.__anext__()
            await engine.speak(request("bad"))
            waiting = asyncio.create_task(engine.speak(request("later")))
            await asyncio.sleep(0.02)
        with pytest.raises(GenerationError, match="this was closed"):
            await waiting
        await stream.aclose()
        async with MonitoredChatterbox(lambda config: Model(config, events), NF4, AT_ONCE) as engine:
            await engine.speak(request("bad"))

    asyncio.run(main())
    assert events.count(f"load {NF4}") == 2 and f"load {SINGLE}" not in events and events.count("shutdown") == 2


@pytest.mark.parametrize("end", [SystemExit("out"), KeyboardInterrupt("out")])
def test_a_load_that_ends_the_process_is_one_that_fails(
    events: list[str], caplog: pytest.LogCaptureFixture, end: BaseException
) -> None:
    def load(config: QuantizationConfig) -> Any:
        if not config.double_quant:
            raise end
        return Model(config, events)

    async def main() -> None:
        async with MonitoredChatterbox(load, NF4, AT_ONCE) as engine:
            await engine.speak(request("bad"))
            assert (await engine.speak(request("good"))).error is None

    asyncio.run(main())
    assert f"load ended with {end!r}" in caplog.text


def test_the_babbling_model_steps_back(babbler: Path) -> None:
    """A limit of speed that nothing reaches makes S3Gen step back to full precision."""

    def load(config: QuantizationConfig) -> ChatterboxTTS:
        return ChatterboxTTS.from_local(
            babbler, "cpu", quantization=config, max_batch_size=1, max_model_len=384, watermark=False
        )

    async def main() -> None:
        config, limits = QuantizationConfig(s3gen="bnb-8bit"), MonitorLimits(real_time_factor=1e-9, least=1)
        async with MonitoredChatterbox(load, config, limits) as engine:
            assert engine.tts.get_quantization_info()["s3gen"]["method"] == "bnb-8bit"
            short, long = (
                SpeechRequest("Hello there.", engine.voice, SpeechParameters(max_tokens=n, seed=1)) for n in (5, 60)
            )
            assert (await engine.speak(short)).finish_reason == "length"
            whole = await engine.speak(long)
            assert whole.finish_reason == "stop" and whole.audio is not None
            assert engine.tts.get_quantization_info()["s3gen"]["method"] is None
            assert [step.step for step in engine.steps] == [Rollback.S3GEN]

    asyncio.run(main())
