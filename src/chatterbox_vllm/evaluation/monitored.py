"""`AsyncChatterbox` under a `Monitor`: where the figures call for it, the model is loaded anew with more bits.

def load(config: QuantizationConfig) -> ChatterboxTTS:
    return ChatterboxTTS.from_pretrained("english", quantization=config)

async with MonitoredChatterbox(load, QuantizationConfig.from_strategy("aggressive")) as engine:
    result = await engine.speak(SpeechRequest(text, engine.voice))
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from chatterbox_vllm.engine.async_chatterbox import AsyncChatterbox
from chatterbox_vllm.engine.request import SpeechChunk, SpeechRequest, SpeechResult
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.evaluation.monitor import Decision, Monitor, MonitorLimits
from chatterbox_vllm.quantization.config import QuantizationConfig

if TYPE_CHECKING:
    from chatterbox_vllm.tts import ChatterboxTTS
    from chatterbox_vllm.voices import Voice

logger = logging.getLogger(__name__)


class MonitoredChatterbox:
    """Speaks, watches, and takes the ordered rollback (`Rollback`) a step at a time; use it from one event loop.

    For a step, requests on their way end first and later ones wait; the old model is freed before the new one loads, in
    a thread. Where that fails, the model comes back as it was before the step, and no further one is tried. Voices stay
    what they were when they were enrolled.

    Args:
        load: makes the model with the configuration given, from weights that are not quantized on disk and without
            `fallback`, so that a step can be taken.
        config: to start with.
        device_bytes: as for `Monitor`.

    Attributes:
        monitor: its `figures` and `config` are those of this moment.
        steps: the decisions that were acted on, in order.
    """

    def __init__(
        self,
        load: Callable[[QuantizationConfig], ChatterboxTTS],
        config: QuantizationConfig,
        limits: MonitorLimits | None = None,
        device_bytes: Callable[[], int] | None = None,
    ):
        self.monitor = Monitor(limits or MonitorLimits(), config, device_bytes=device_bytes)
        self.steps: list[Decision] = []
        self._load = load
        self._engine: AsyncChatterbox | None = None
        self._voice: Voice | None = None
        self._failure: Exception | None = None
        self._running = 0
        self._closed = False
        # In the engine's thread set, in the event loop's cleared.
        self._stepping = False
        self._step: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Load the model.

        Raises:
            ConfigError: its components are not quantized as `load` was asked for.
            others: as `load` raises them.
        """
        self._loop = asyncio.get_running_loop()
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        await asyncio.to_thread(self._start, self.monitor.config)
        self._open.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._step is not None:
            await self._step
        await asyncio.to_thread(self._stop)

    @property
    def tts(self) -> ChatterboxTTS:
        """The model in use.

        Raises:
            ConfigError: there is none at this moment: it is being loaded, or this was closed.
        """
        if self._engine is None:
            raise ConfigError("there is no model at this moment: wait until it is loaded, or open this anew")
        return self._engine.tts

    @property
    def voice(self) -> Voice:
        """The model's own voice, or the one that `load` left in use; also while a model is being loaded.

        Raises:
            ConfigError: there is none.
        """
        if self._voice is None:
            raise ConfigError(
                "the model has no voice of its own: enrol one (`engine.tts.enrol`) and name it in the request"
            )
        return self._voice

    async def speak(self, request: SpeechRequest, request_id: str | None = None) -> SpeechResult:
        """As `AsyncChatterbox.speak`."""
        async with self._turn() as engine:
            return await engine.speak(request, request_id)

    async def generate(
        self, request: SpeechRequest, request_id: str | None = None
    ) -> AsyncGenerator[SpeechChunk, None]:
        """As `AsyncChatterbox.generate`."""
        async with self._turn() as engine, contextlib.aclosing(engine.generate(request, request_id)) as chunks:
            async for chunk in chunks:
                yield chunk

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[AsyncChatterbox]:
        """A model that stays for as long as this is open."""
        while not self._open.is_set():
            await self._open.wait()
        if self._engine is None:
            raise GenerationError(f"there is no model ({self._failure or 'this was closed'}); open this anew")
        self._running += 1
        self._idle.clear()
        try:
            yield self._engine
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _observe(self, result: SpeechResult) -> None:
        """Called in the engine's thread."""
        if self._stepping:  # what still comes belongs to the configuration that is on its way out
            return
        before = self.monitor.config
        decision = self.monitor.observe(result)
        if decision is not None and decision.step is not None:
            self._stepping = True
            self._loop.call_soon_threadsafe(self._begin, decision, before)

    def _begin(self, decision: Decision, before: QuantizationConfig) -> None:
        if self._closed:
            return
        self._open.clear()
        self._step = asyncio.create_task(self._take(decision, before))

    async def _take(self, decision: Decision, before: QuantizationConfig) -> None:
        name = decision.step.value if decision.step is not None else ""
        await self._idle.wait()
        logger.warning("%s: %s", name, "; ".join(decision.reasons))
        try:
            await asyncio.to_thread(self._restart, decision.config)
            self.steps.append(decision)
        except Exception as error:  # whatever it was, the service goes on with what it had
            logger.error("%s cannot be had, going on with %s: %s", name, before, error)
            self.monitor.stay_at(before)
            try:
                await asyncio.to_thread(self._restart, before)
            except Exception as failure:
                logger.error("%s cannot be loaded again: %s", before, failure)
                self._failure = failure
        finally:
            self._stepping = False
            self._open.set()

    def _restart(self, config: QuantizationConfig) -> None:
        self._stop()
        self._start(config)

    def _start(self, config: QuantizationConfig) -> None:
        tts = self._load(config)
        try:
            _check(tts, config)
            self._engine = AsyncChatterbox(tts, self._observe)
        except BaseException:
            tts.shutdown()
            raise
        self._voice = tts.conds or self._voice

    def _stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
            engine.tts.shutdown()


def _check(tts: ChatterboxTTS, config: QuantizationConfig) -> None:
    """Refuse a model that is not what was asked for: a step that changes nothing would be taken for a remedy.

    Raises:
        ConfigError
    """
    info = tts.get_quantization_info()
    for name in ("t3", "s3gen"):  # the voice encoder is loaded at the first enrolment
        wanted, found = config.methods[name], info[name]["method"]
        if found != wanted:
            raise ConfigError(
                f"load was asked for {name} {wanted or 'not quantized'} and gave {found or 'not quantized'}: load from "
                "weights that are not quantized on disk, without fallback, and hand the configuration on"
            )
