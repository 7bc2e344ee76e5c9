"""`MonitoredChatterbox`: opening and closing that are cancelled, or meet a step."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("vllm")

from chatterbox_vllm import (
    GenerationError,
    QuantizationConfig,
)
from chatterbox_vllm.serving import monitored
from chatterbox_vllm.serving.monitored import MonitoredChatterbox
from tests.monitored import AT_ONCE, NF4, SINGLE, Engine, Model, request


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(monitored, "AsyncChatterbox", Engine)
    return []


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
