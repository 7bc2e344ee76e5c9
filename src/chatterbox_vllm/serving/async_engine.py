"""The engine for serving stacks: requests from any task, audio as it becomes ready, one thread that does the work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, overload

from typing_extensions import Self

from chatterbox_vllm.engine.budgets import Limits, Meter
from chatterbox_vllm.engine.conversion import ConversionRequest, Request
from chatterbox_vllm.engine.request import AudioChunk, Delivery, SpeechRequest, SpeechResult, draw_seed
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.tts import ChatterboxTTS

logger = logging.getLogger(__name__)

Event = AudioChunk | SpeechResult
# How long the loop waits for S3Gen before it looks for new requests again.
_PATIENCE = 0.005
# Of so many places at T3, one is kept for requests that have none yet.
_PLACES_PER_RESERVED = 16
# How long it sleeps where all that is left waits for callers to take their audio, before it looks at deadlines again.
_NAP = 0.05


@dataclass(frozen=True)
class EngineStats:
    """What the engine is doing, and has done since it started.

    Attributes:
        queued: requests none of whose pieces has been given to T3.
        talking: pieces that T3 speaks.
        waiting_for_voice: pieces that T3 has spoken and S3Gen has not taken yet.
        unfinished: requests on their way.
        completed, failed: requests delivered (aborted ones count as failed).
        audio_seconds: delivered.
        untaken_seconds: of audio that is ready and that callers have not taken.
        kv_blocks_in_use: of T3's cache.
        uptime: seconds.
    """

    queued: int
    talking: int
    waiting_for_voice: int
    unfinished: int
    completed: int
    failed: int
    audio_seconds: float
    untaken_seconds: float
    kv_blocks_in_use: int
    uptime: float


@dataclass(eq=False)
class _Caller:
    """Who waits for a request's events.

    Attributes:
        serial: the scheduler's number of the request, once it is submitted.
        untaken: samples in chunks that the caller has not taken.
    """

    label: str
    seed: int
    sink: Callable[[Event | Exception], None]
    serial: int | None = None
    untaken: int = 0


class AsyncChatterbox:
    """Runs a loaded model's scheduler in a thread of its own; use it from one event loop or several.

    The model must not be used otherwise while this is open. Closing drops what is unfinished, with errors, and leaves
    the model as it was; shutting the model down closes this first.

    Args:
        on_result: told every result, also of streamed, failed and aborted requests and of those that were on their way
            when the engine failed, in the engine's thread: it must be quick. What it raises is logged and harms no
            request.
        limits: how much may be on its way at once; beyond it new requests are refused with `OverloadedError`.
    """

    def __init__(
        self,
        tts: ChatterboxTTS,
        on_result: Callable[[SpeechResult], object] | None = None,
        limits: Limits | None = None,
    ):
        self.tts = tts
        self.limits = limits or Limits()
        self._on_result = on_result
        self._meter = Meter(self.limits, tts.sr)
        self._scheduler, self._talker = tts.lend_scheduler(self.close)
        self._scheduler.max_untaken = self.limits.waiting_seconds
        self._scheduler.admission.reserved = -(-(self._scheduler.admission.max_admitted - 1) // _PLACES_PER_RESERVED)
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._asked = threading.Event()  # something that somebody waits for, since the commands were last looked at
        self._scheduler.meanwhile = self._obey
        self._scheduler.should_yield = self._asked.is_set
        self._callers: dict[int, _Caller] = {}  # by the request's number
        self._labels: dict[str, int] = {}
        self._completed = self._failed = 0
        self._audio_samples = 0
        self._started = time.monotonic()
        self._failure: Exception | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="chatterbox-engine", daemon=True)
        self._thread.start()

    @overload
    def generate(
        self, request: Request, request_id: str | None = None, *, stream: Literal[False] = False
    ) -> AsyncGenerator[AudioChunk, None]: ...
    @overload
    def generate(
        self, request: Request, request_id: str | None = None, *, stream: Literal[True]
    ) -> AsyncGenerator[AudioChunk | SpeechResult, None]: ...
    @overload
    def generate(
        self, request: Request, request_id: str | None = None, *, stream: bool
    ) -> AsyncGenerator[AudioChunk | SpeechResult, None]: ...
    async def generate(
        self, request: Request, request_id: str | None = None, *, stream: bool = False
    ) -> AsyncGenerator[Any, None]:
        """Audio of a request in parts, each as soon as it is ready; together they are the whole.

        The request is a text to speak, or a recording to convert (`ConversionRequest`).

        Without `stream` a part is a whole segment of the text, as `speak` would give it. With `stream` audio comes
        while T3 still speaks: a few tenths of a second at first, then longer parts; after the last of them comes the
        request's `SpeechResult`, which holds seed, finish reason, sample count and timings, and no audio.

        Closing the iterator aborts the request: `async with contextlib.aclosing(engine.generate(...)) as chunks` does
        so as soon as the block is left, however it is left. Where a loop is merely left by `break`, Python closes the
        iterator when nothing refers to it any more; until then the request goes on to `limits.waiting_seconds`.

        Args:
            request_id: a name for it, to abort it by; no other request on its way may have it.
            stream: render while T3 speaks.

        Raises:
            ConfigError, GenerationError, AbortedError, DeadlineError, OverloadedError: as the request meets them.
        """
        delivery = Delivery.STREAM if stream else Delivery.SEGMENTS
        async with contextlib.aclosing(self._events(request, request_id, delivery)) as events:
            async for event in events:
                if isinstance(event, SpeechResult) and event.error is not None:
                    raise event.error
                if stream or isinstance(event, AudioChunk):
                    yield event

    async def speak(self, request: Request, request_id: str | None = None) -> SpeechResult:
        """The whole result of a request; failures are in its `error`. Cancelling the task aborts the request.

        Raises:
            ConfigError: another request of that name is on its way, or the text is longer than any that is taken.
            OverloadedError: the engine has no room now.
            GenerationError: the engine is closed, or has failed.
        """
        async with contextlib.aclosing(self._events(request, request_id, Delivery.WHOLE)) as events:
            async for event in events:
                if isinstance(event, SpeechResult):
                    return event
        raise GenerationError(f"request {request_id!r} ended without a result")

    @property
    def failure(self) -> Exception | None:
        """What ended the engine, so that the model must be loaded anew; None while all is well."""
        return self._failure

    def abort(self, request_id: str) -> None:
        """Drop a request and free what it holds within one step; nothing happens if there is none of that name."""

        def drop() -> None:
            serial = self._labels.get(request_id)
            if serial is not None and self._failure is None:
                self._scheduler.abort(serial)

        self._ask(drop)

    def stats(self) -> EngineStats:
        """Figures of this moment."""
        scheduler = self._scheduler
        return EngineStats(
            queued=scheduler.queued,
            talking=scheduler.talking,
            waiting_for_voice=scheduler.waiting_for_voice,
            unfinished=scheduler.unfinished,
            completed=self._completed,
            failed=self._failed,
            audio_seconds=self._audio_samples / self.tts.sr,
            untaken_seconds=self._meter.waiting_samples / self.tts.sr,
            kv_blocks_in_use=self._talker.kv_blocks_in_use,
            uptime=time.monotonic() - self._started,
        )

    def close(self) -> None:
        """Abort everything and stop the thread. Nothing happens when called again."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._commands.put(None)
                self._thread.join()
                self._scheduler.admission.reserved = 0
                self._scheduler.meanwhile = self._scheduler.should_yield = None
                self.tts.return_scheduler()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def _events(
        self, request: Request, request_id: str | None, delivery: Delivery
    ) -> AsyncGenerator[Event, None]:
        """A request's events; the result is the last."""
        if not isinstance(request, (SpeechRequest, ConversionRequest)):
            raise ConfigError(f"a request must be a SpeechRequest or a ConversionRequest, not {type(request).__name__}")
        self._require_open()
        seed = request.parameters.seed
        if seed is None:
            seed = draw_seed()
            request = replace(request, parameters=replace(request.parameters, seed=seed))
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Event | Exception] = asyncio.Queue()

        def sink(event: Event | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop has closed
                loop.call_soon_threadsafe(inbox.put_nowait, event)

        caller = _Caller(request_id or uuid.uuid4().hex, seed, sink)
        self._meter.take_on(len(request.text))
        done = False
        try:
            self._ask(lambda: self._submit(request, caller, delivery))
            self._require_open()  # again: the thread may have ended before, and would never answer
            while not done:
                event = await inbox.get()
                if isinstance(event, Exception):
                    done = True
                    raise event
                if isinstance(event, AudioChunk):
                    self._commands.put(partial(self._take, caller, event))
                done = isinstance(event, SpeechResult)
                yield event
        finally:
            leave = partial(self._leave, caller)
            if done:  # then nobody waits for it
                self._commands.put(leave)
            else:
                self._ask(leave)
            self._meter.let_go(len(request.text))

    def _ask(self, command: Callable[[], object]) -> None:
        """Let the thread do what somebody waits for, as soon as T3 has drawn a token."""
        self._commands.put(command)
        self._asked.set()

    def _require_open(self) -> None:
        if self._closed or self._failure is not None:
            raise self._closed_error()

    def _closed_error(self) -> GenerationError:
        return GenerationError(f"the engine is closed ({self._failure or 'close() was called'})")

    # What follows runs in the engine's thread.

    def _submit(self, request: Request, caller: _Caller, delivery: Delivery) -> None:
        if self._failure is not None:
            caller.sink(self._closed_error())
        elif caller.label in self._labels:
            caller.sink(ConfigError(f"a request named {caller.label!r} is on its way; use another name"))
        else:
            caller.serial = self._scheduler.submit(request, caller.label, delivery=delivery)
            self._callers[caller.serial] = caller
            self._labels[caller.label] = caller.serial

    def _take(self, caller: _Caller, chunk: AudioChunk) -> None:
        """The caller has taken a chunk."""
        self._count_untaken(caller, -len(chunk.audio))
        self._scheduler.taken(chunk.serial, len(chunk.audio))

    def _leave(self, caller: _Caller) -> None:
        """The caller is gone, with or without all that was asked for."""
        self._count_untaken(caller, -caller.untaken)
        if caller.serial is not None and self._failure is None:
            self._scheduler.abort(caller.serial)

    def _count_untaken(self, caller: _Caller, samples: int) -> None:
        caller.untaken += samples
        self._meter.waiting(samples)

    def _work(self) -> None:
        try:
            self._loop()
        except Exception as error:  # the engine is broken; whoever waits must hear of it
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        failure = GenerationError(f"the engine failed ({type(error).__name__}: {error}); load the model anew")
        for serial, caller in list(self._callers.items()):
            self._failed += 1
            self._forget(serial)
            self._tell(SpeechResult(serial, caller.label, 0, caller.seed, error=failure))
            caller.sink(failure)
        with contextlib.suppress(queue.Empty):
            while True:  # requests that came just before
                command = self._commands.get_nowait()
                if command is not None:
                    command()

    def _loop(self) -> None:
        scheduler = self._scheduler
        while True:
            self._asked.clear()
            with contextlib.suppress(queue.Empty):
                while True:
                    command = self._commands.get(timeout=self._nap())
                    if command is None:
                        scheduler.abort_all()
                        self._publish(scheduler.step(0.0))
                        return
                    command()
            self._publish(scheduler.step(_PATIENCE))

    def _obey(self) -> None:
        """Do what was asked for while S3Gen works in this thread, so that to cancel need not wait for its end."""
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if command is None:
                    self._scheduler.abort_all()
                    self._commands.put(None)  # for the loop, which ends then
                    return
                command()

    def _nap(self) -> float | None:
        """Seconds to wait for a command before the next step; None waits until there is one."""
        if not self._scheduler.unfinished:
            return None
        return _NAP if self._scheduler.blocked else 0.0

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            caller = self._callers.get(event.serial)
            if caller is None:  # an earlier engine's request is none of ours
                continue
            if isinstance(event, AudioChunk):
                self._count_untaken(caller, len(event.audio))
            else:
                self._forget(event.serial)
                self._completed += event.error is None
                self._failed += event.error is not None
                self._audio_samples += 0 if event.error is not None else event.samples
                self._tell(event)
            caller.sink(event)

    def _forget(self, serial: int) -> None:
        del self._labels[self._callers.pop(serial).label]

    def _tell(self, result: SpeechResult) -> None:
        if self._on_result is not None:
            try:
                self._on_result(result)
            except Exception:
                logger.exception("on_result failed for request %r", result.request_id)
