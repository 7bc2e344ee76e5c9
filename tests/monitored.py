"""Doubles of a model and its engine, for tests of `MonitoredChatterbox`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import (
    AudioChunk,
    ConfigError,
    GenerationError,
    QuantizationConfig,
    SpeechResult,
)
from chatterbox_vllm.serving.monitor import MonitorLimits

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

    async def generate(
        self, request: SimpleNamespace, request_id: str | None = None, *, stream: bool = False
    ) -> AsyncGenerator[Any, None]:
        if request.text == "chunks":
            yield AudioChunk(0, "r", torch.zeros(10))
        yield (await self.speak(request)).audio

    def close(self) -> None:
        self.tts.events.append("close")


def request(text: str) -> Any:
    return SimpleNamespace(text=text)
