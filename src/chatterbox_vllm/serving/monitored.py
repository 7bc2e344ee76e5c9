"""`AsyncChatterbox` under a `Monitor`: where the figures call for it, the model is loaded anew with more bits.

def load(config: QuantizationConfig) -> ChatterboxTTS:
    return ChatterboxTTS.from_pretrained(quantization=config)

async with MonitoredChatterbox(load, QuantizationConfig.from_strategy("aggressive")) as engine:
    result = await engine.speak(SpeechRequest(text, engine.voice))
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from typing_extensions import Self

from chatterbox_vllm.engine.request import AudioChunk, SpeechRequest, SpeechResult
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.serving.async_engine import AsyncChatterbox
from chatterbox_vllm.serving.monitor import Decision, Monitor, MonitorLimits

if TYPE_CHECKING:
    from chatterbox_vllm.tts import ChatterboxTTS
    from chatterbox_vllm.voices.voice import Voice

logger = logging.getLogger(__name__)

# Between NF4's bytes a weight with double quantization, 0.516, and without, 0.5625.
_DOUBLE_QUANT_BYTES = 0.54


class _State(Enum):
    """NEW -> LOADING -> OPEN <-> STEPPING, OPEN -> LOADING where an engine failed; from each to CLOSED or FAILED.

    Requests are taken in OPEN, wait in LOADING and STEPPING, and are refused otherwise.
    """

    NEW = "this was not opened"
    LOADING = "a model is being loaded"
    OPEN = "this is open"
    STEPPING = "a step waits for requests on their way, or is being taken"
    CLOSED = "this was closed"
    FAILED = "no model could be loaded"


@dataclass(eq=False)
class _Model:
    """A model in memory, and how many requests it is speaking."""

    engine: AsyncChatterbox
    config: QuantizationConfig
    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class MonitoredChatterbox:
    """Speaks, watches, and takes the ordered rollback (`Rollback`) a step at a time; use it from one event loop.

    For a step, requests on their way end first and later ones wait; the old model is freed before the new one loads, in
    a thread. Where requests on their way take longer than `patience` (a stream whose consumer pauses, or makes another
    request), the step is given up and service goes on; it is tried again after `MonitorLimits.least` further results.
    Where the load fails, the model comes back as it was before the step, and no further one is tried. Voices stay what
    they were when they were enrolled.

    Where the engine fails, so do its requests, and the model is loaded anew with the configuration in force; where it
    fails again before any request has succeeded, requests are refused. Opened again after it was closed, this starts
    afresh with the configuration that it had come to.

    Args:
        load: makes the model with the configuration given, from weights that are not quantized on disk and without
            `fallback`, so that a step can be taken. Called in a thread.
        config: to start with.
        device_bytes: as for `Monitor`.
        patience: longest wait of a step for requests on their way, seconds; so long may new requests wait for it in
            vain.

    Attributes:
        monitor: its `figures` and `config` are those of this moment.
        steps: the decisions that were acted on, in order.

    Raises:
        ConfigError: `patience` is not a positive number.
    """

    def __init__(
        self,
        load: Callable[[QuantizationConfig], ChatterboxTTS],
        config: QuantizationConfig,
        limits: MonitorLimits | None = None,
        device_bytes: Callable[[], int] | None = None,
        patience: float = 60.0,
    ):
        if isinstance(patience, bool) or not isinstance(patience, (int, float)) or not patience > 0:
            raise ConfigError(f"patience must be a positive number of seconds, not {patience!r}")
        self.monitor = Monitor(limits or MonitorLimits(), config, device_bytes=device_bytes)
        self.steps: list[Decision] = []
        self._load = load
        self._patience = patience
        self._state = _State.NEW
        self._settled = asyncio.Event()  # neither loading nor stepping
        self._failure: Exception | None = None
        self._change: asyncio.Task[None] | None = None
        self._recovered = False  # loaded anew after a failure, and no request has succeeded since
        self._opening = 0  # counts openings and closings: what a thread does for an earlier one is not wanted any more
        self._one_model = threading.Lock()
        self._model: _Model | None = None
        self._voice: Voice | None = None

    async def __aenter__(self) -> Self:
        """Load the model. Where this is cancelled, the model is freed as soon as its load ends.

        Raises:
            ConfigError: this is open already; or components are not quantized as `load` was asked for.
            others: as `load` raises them.
        """
        if self._state in (_State.LOADING, _State.OPEN, _State.STEPPING):
            raise ConfigError("this is open already; close it first, or make another")
        self._loop = asyncio.get_running_loop()
        self._settled = asyncio.Event()
        self._failure, self._recovered = None, False
        self._opening += 1
        self._enter(_State.LOADING)
        try:
            await self._change_to(self.monitor.config)
        except BaseException:
            self._close()
            raise
        self.monitor.moved_to(self.monitor.config)
        self._enter(_State.OPEN)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(self._close())  # cancelled, it still ends

    @property
    def tts(self) -> ChatterboxTTS:
        """The model in use.

        Raises:
            ConfigError: there is none at this moment: it is being loaded, or this was closed.
        """
        model = self._model
        if model is None:
            raise ConfigError("there is no model at this moment: wait until it is loaded, or open this anew")
        return model.engine.tts

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

    @overload
    def generate(
        self, request: SpeechRequest, request_id: str | None = None, *, stream: Literal[False] = False
    ) -> AsyncGenerator[AudioChunk, None]: ...
    @overload
    def generate(
        self, request: SpeechRequest, request_id: str | None = None, *, stream: Literal[True]
    ) -> AsyncGenerator[AudioChunk | SpeechResult, None]: ...
    @overload
    def generate(
        self, request: SpeechRequest, request_id: str | None = None, *, stream: bool
    ) -> AsyncGenerator[AudioChunk | SpeechResult, None]: ...
    async def generate(
        self, request: SpeechRequest, request_id: str | None = None, *, stream: bool = False
    ) -> AsyncGenerator[Any, None]:
        """As `AsyncChatterbox.generate`."""
        async with (
            self._turn() as engine,
            contextlib.aclosing(engine.generate(request, request_id, stream=stream)) as events,
        ):
            async for event in events:
                yield event

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[AsyncChatterbox]:
        """A model that stays for as long as this is open."""
        model = await self._ready()
        model.running += 1
        model.idle.clear()
        try:
            yield model.engine
        finally:
            model.running -= 1
            if not model.running or model.engine.failure is not None:  # nothing more comes from an engine that failed
                model.idle.set()
            self._recover(model)

    async def _ready(self) -> _Model:
        while self._state in (_State.LOADING, _State.STEPPING):
            await self._settled.wait()
        model = self._model
        if self._state is not _State.OPEN or model is None:
            raise GenerationError(f"there is no model ({self._failure or self._state.value}); open this anew")
        if model.engine.failure is None:
            return model
        self._recover(model)
        return await self._ready()

    def _enter(self, state: _State) -> None:
        self._state = state
        if state in (_State.LOADING, _State.STEPPING):
            self._settled.clear()
        else:
            self._settled.set()

    def _close(self) -> asyncio.Future[None]:
        """Refuse requests and free the model, also one that a thread is still loading."""
        self._opening += 1
        self._enter(_State.CLOSED)
        if self._change is not None:
            self._change.cancel()
        return self._freed()

    def _observe(self, result: SpeechResult) -> None:
        """Called in the engine's thread."""
        if result.error is None:
            self._recovered = False  # a refusal says nothing of the engine
        decision = self.monitor.assess(result)
        if decision is not None and decision.step is not None:
            self._loop.call_soon_threadsafe(self._begin, decision)

    def _begin(self, decision: Decision) -> None:
        model = self._model
        if self._state is _State.OPEN and model is not None:
            self._enter(_State.STEPPING)
            self._change = asyncio.create_task(self._step(decision, model))

    async def _step(self, decision: Decision, model: _Model) -> None:
        name = decision.step.value if decision.step is not None else ""
        if model.running:
            try:
                async with asyncio.timeout(self._patience):
                    await model.idle.wait()
            except TimeoutError:
                logger.warning("%s is put off: requests are on their way for more than %g s", name, self._patience)
                self.monitor.put_off()
                self._enter(_State.OPEN)
                return
        logger.warning("%s: %s", name, "; ".join(decision.reasons))
        try:
            await self._change_to(decision.config)
        except Exception as error:  # whatever it was, the service goes on with what it had
            logger.error("%s cannot be had, going on with %s: %s", name, model.config, error)
            self.monitor.stay_at(model.config)
            await self._load_anew(model.config)
        else:
            self.monitor.moved_to(decision.config)
            self.steps.append(decision)
            self._enter(_State.OPEN)

    def _recover(self, model: _Model) -> None:
        """Load the model anew where its engine has failed; at a second failure in a row, free it and stop."""
        failure = model.engine.failure
        if failure is None or model is not self._model or self._state is not _State.OPEN:
            return
        if self._recovered:
            self._failure = GenerationError(f"the engine failed, and again before a request succeeded: {failure}")
            self._enter(_State.FAILED)
            self._freed()
        else:
            logger.error("the engine failed, loading %s anew: %s", model.config, failure)
            self._recovered = True
            self._enter(_State.LOADING)
            self._change = asyncio.create_task(self._load_anew(model.config))

    async def _load_anew(self, config: QuantizationConfig) -> None:
        try:
            await self._change_to(config)
            self._enter(_State.OPEN)
        except Exception as failure:
            logger.error("%s cannot be loaded again: %s", config, failure)
            self._failure = failure
            self._enter(_State.FAILED)

    async def _change_to(self, config: QuantizationConfig) -> None:
        """Where this is cancelled, the thread still goes on to its end; `_close` frees what comes of it."""
        await self._loop.run_in_executor(None, self._swap, config, self._opening)

    def _freed(self) -> asyncio.Future[None]:
        return self._loop.run_in_executor(None, self._free, self._opening)

    def _swap(self, config: QuantizationConfig, opening: int) -> None:
        with self._one_model:
            self._shut_down()
            if opening == self._opening:  # else this was closed meanwhile
                self._model = self._loaded(config)

    def _free(self, opening: int) -> None:
        with self._one_model:
            if opening == self._opening:  # else this was opened again, which frees what was there
                self._shut_down()

    def _shut_down(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.engine.close()
            model.engine.tts.shutdown()

    def _loaded(self, config: QuantizationConfig) -> _Model:
        try:
            tts = self._load(config)
        except (SystemExit, KeyboardInterrupt) as error:  # from here they would end the event loop
            raise ConfigError(f"load ended with {error!r}: let it raise an error where it has no model") from error
        try:
            _check(tts, config)
            engine = AsyncChatterbox(tts, self._observe)
        except BaseException:
            tts.shutdown()
            raise
        self._voice = tts.conds or self._voice
        return _Model(engine, config)


def _check(tts: ChatterboxTTS, config: QuantizationConfig) -> None:
    """Refuse a model that is not what was asked for: a step that changes nothing would be taken for a remedy.

    Raises:
        ConfigError
    """
    info = tts.get_quantization_info()
    for name, method in config.methods.items():
        live = info[name]
        if live is None:  # the voice encoder is loaded at the first enrolment
            found, double_quant = tts.quantization.methods[name], tts.quantization.double_quant
        else:
            found, double_quant = live["method"], (live["bytes_per_weight"] or 0.0) < _DOUBLE_QUANT_BYTES
        wanted, given = _described(method, config.double_quant), _described(found, double_quant)
        if given != wanted:
            raise ConfigError(
                f"load was asked for {name} {wanted} and gave {given}: load from weights that are not quantized on "
                "disk, without fallback, and hand the configuration on"
            )


def _described(method: str | None, double_quant: bool) -> str:
    single = method == "bnb-4bit" and not double_quant
    return f"{method} without double quantization" if single else method or "not quantized"
