"""`MonitoredChatterbox`: when it steps, what happens to requests meanwhile, and what becomes of steps that fail."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from chatterbox_vllm import (
    ChatterboxTTS,
    ConfigError,
    DeviceError,
    GenerationError,
    QuantizationConfig,
    SpeechParameters,
    SpeechRequest,
)
from chatterbox_vllm.serving import monitored
from chatterbox_vllm.serving.monitor import MonitorLimits, Rollback
from chatterbox_vllm.serving.monitored import MonitoredChatterbox
from tests.monitored import AT_ONCE, LIMITS, NF4, SINGLE, Engine, Model, request


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(monitored, "AsyncChatterbox", Engine)
    return []


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
