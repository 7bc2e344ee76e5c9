"""`MonitoredChatterbox`: when it steps, what happens to requests meanwhile, and what becomes of steps that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import (
    ChatterboxTTS,
    ConfigError,
    DeviceError,
    GenerationError,
    QuantizationConfig,
    SpeechParameters,
    SpeechRequest,
    SpeechResult,
)
from chatterbox_vllm.evaluation import monitored
from chatterbox_vllm.evaluation.monitor import MonitorLimits, Rollback
from chatterbox_vllm.evaluation.monitored import MonitoredChatterbox

NF4 = QuantizationConfig("bnb-4bit", "bnb-4bit", None)
LIMITS = MonitorLimits(failure_rate=0.5, window=10, least=2)


class Model:
    """Stands for a loaded `ChatterboxTTS`; `events` is what happened to all of them."""

    def __init__(self, config: QuantizationConfig, events: list[str]):
        self.config, self.events = config, events
        self.conds = object()
        events.append(f"load {config}")

    def get_quantization_info(self) -> dict[str, Any]:
        return {name: {"method": method} for name, method in self.config.methods.items()}

    def shutdown(self) -> None:
        self.events.append("shutdown")


class Engine:
    """Stands for `AsyncChatterbox`: a request's text says what becomes of it, "wait" until `release` is set."""

    release: asyncio.Event

    def __init__(self, tts: Model, on_result: Callable[[SpeechResult], object]):
        self.tts, self.on_result = tts, on_result

    async def speak(self, request: SimpleNamespace, request_id: str | None = None) -> SpeechResult:
        if request.text == "wait":
            await self.release.wait()
        failed = request.text == "bad"
        result = SpeechResult(
            "r", 0, 1, None if failed else torch.zeros(24_000), GenerationError("broken") if failed else None
        )
        await asyncio.to_thread(self.on_result, result)
        self.tts.events.append(f"{request.text} under {self.tts.config}")
        return result

    async def generate(self, request: SimpleNamespace, request_id: str | None = None) -> AsyncGenerator[Any, None]:
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
            Engine.release.set()
            await asyncio.gather(slow, later)
            assert [step.step for step in engine.steps] == [Rollback.DOUBLE_QUANT]
            assert engine.tts.config == engine.monitor.config == QuantizationConfig("bnb-4bit", "bnb-4bit", None, False)
            assert engine.monitor.figures.results == 1  # "later"; "wait" belongs to the model before
            assert engine.voice is not voice
        with pytest.raises(GenerationError, match="this was closed"):
            await engine.speak(request("too late"))
        with pytest.raises(ConfigError, match="no model at this moment"):
            _ = engine.tts

    asyncio.run(main())
    single = f"{NF4}, single quantization of scales"
    assert events == [
        f"load {NF4}", f"bad under {NF4}", f"bad under {NF4}", f"wait under {NF4}", "close", "shutdown",
        f"load {single}", f"later under {single}", "close", "shutdown",
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
            assert engine.monitor.figures.failure_rate == 1.0 and engine.monitor.figures.results == 3

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


def test_the_demo_model_steps_back(demo: Path) -> None:
    """Speech cut off counts as failed, so a limit of five tokens makes S3Gen step back to full precision."""

    def load(config: QuantizationConfig) -> ChatterboxTTS:
        return ChatterboxTTS.from_local(
            demo, "cpu", quantization=config, max_batch_size=1, max_model_len=384, watermark=False
        )

    async def main() -> None:
        config = QuantizationConfig(s3gen="bnb-8bit")
        async with MonitoredChatterbox(load, config, MonitorLimits(failure_rate=0.0, least=1)) as engine:
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
