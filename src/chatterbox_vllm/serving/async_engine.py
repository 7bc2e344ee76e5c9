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
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from chatterbox_vllm.engine.request import SpeechChunk, SpeechRequest, SpeechResult, draw_seed
from chatterbox_vllm.errors import ConfigError, GenerationError

if TYPE_CHECKING:
    from chatterbox_vllm.tts import ChatterboxTTS

logger = logging.getLogger(__name__)

Event = SpeechChunk | SpeechResult
# How long the loop waits for S3Gen before it looks for new requests again.
_PATIENCE = 0.005


@dataclass(frozen=True)
class EngineStats:
    """What the engine is doing, and has done since it started.

    Attributes:
        queued: requests that no segment has been admitted of.
        talking: segments that T3 speaks; `waiting_for_voice`: spoken, not yet in S3Gen's hands.
        unfinished: requests on their way.
        completed, failed: requests delivered (aborted ones count as failed).
        audio_seconds: delivered.
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
    kv_blocks_in_use: int
    uptime: float


@dataclass(frozen=True)
class _Caller:
    """Who waits for a request's events, and the seed that it is spoken with."""

    sink: Callable[[Event | Exception], None]
    seed: int


class AsyncChatterbox:
    """Runs a loaded model's scheduler in a thread of its own; use it from one event loop or several.

    The model must not be used otherwise while this is open. Closing drops what is unfinished, with errors, and leaves
    the model as it was.

    Args:
        on_result: told every result, also of streamed, failed and aborted requests and of those that were on their way
            when the engine failed, in the engine's thread: it must be quick. What it raises is logged and harms no
            request.
    """

    def __init__(self, tts: ChatterboxTTS, on_result: Callable[[SpeechResult], object] | None = None):
        self.tts = tts
        self._on_result = on_result
        self._scheduler, self._talker = tts.lend_scheduler()
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._callers: dict[str, _Caller] = {}
        self._completed = self._failed = 0
        self._audio_samples = 0
        self._started = time.monotonic()
        self._failure: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="chatterbox-engine", daemon=True)
        self._thread.start()

    async def generate(
        self, request: SpeechRequest, request_id: str | None = None
    ) -> AsyncGenerator[SpeechChunk, None]:
        """Audio of a request in parts, each as soon as it is ready; together they are the whole.

        Leaving the iterator early aborts the request.

        Raises:
            ConfigError, GenerationError, CancelledError, DeadlineError: as the request meets them.
        """
        request_id = request_id or uuid.uuid4().hex
        async with contextlib.aclosing(self._events(request, request_id)) as events:
            async for event in events:
                if isinstance(event, SpeechChunk):
                    yield event
                elif event.error is not None:
                    raise event.error

    async def speak(self, request: SpeechRequest, request_id: str | None = None) -> SpeechResult:
        """The whole result of a request; failures are in its `error`. Cancelling the task aborts the request."""
        async with contextlib.aclosing(self._events(request, request_id or uuid.uuid4().hex)) as events:
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
            if self._failure is None:
                self._scheduler.abort(request_id)

        self._commands.put(drop)

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
            kv_blocks_in_use=self._talker.kv_blocks_in_use,
            uptime=time.monotonic() - self._started,
        )

    def close(self) -> None:
        """Abort everything and stop the thread. Nothing happens when called again."""
        if not self._closed:
            self._closed = True
            self._commands.put(None)
            self._thread.join()
            self.tts.return_scheduler()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def _events(self, request: SpeechRequest, request_id: str) -> AsyncGenerator[Event, None]:
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

        def submit() -> None:
            if self._failure is not None:
                sink(self._closed_error())
                return
            if request_id in self._callers:
                sink(ConfigError(f"a request named {request_id!r} is on its way; use another name"))
                return
            self._callers[request_id] = _Caller(sink, seed)
            self._scheduler.submit(request, request_id)

        self._commands.put(submit)
        self._require_open()  # again: the thread may have ended before, and would never answer
        done = False
        try:
            while not done:
                event = await inbox.get()
                if isinstance(event, Exception):
                    done = True
                    raise event
                done = isinstance(event, SpeechResult)
                yield event
        finally:
            if not done:
                self.abort(request_id)

    def _require_open(self) -> None:
        if self._closed or self._failure is not None:
            raise self._closed_error()

    def _closed_error(self) -> GenerationError:
        return GenerationError(f"the engine is closed ({self._failure or 'close() was called'})")

    def _work(self) -> None:
        try:
            self._loop()
        except Exception as error:  # the engine is broken; whoever waits must hear of it
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        failure = GenerationError(f"the engine failed ({type(error).__name__}: {error}); load the model anew")
        for request_id, caller in self._callers.items():
            self._failed += 1
            self._tell(SpeechResult(request_id, 0, caller.seed, error=failure))
            caller.sink(failure)
        self._callers.clear()
        with contextlib.suppress(queue.Empty):
            while True:  # requests that came just before
                command = self._commands.get_nowait()
                if command is not None:
                    command()

    def _loop(self) -> None:
        scheduler = self._scheduler
        while True:
            try:
                while True:
                    # Nothing to do: sleep until somebody wants something.
                    command = self._commands.get(block=not scheduler.unfinished)
                    if command is None:
                        for request_id in list(self._callers):
                            scheduler.abort(request_id)
                        self._publish(scheduler.step(0.0))
                        return
                    command()
            except queue.Empty:
                pass
            self._publish(scheduler.step(_PATIENCE))

    def _publish(self, events: list[Event]) -> None:
        for event in events:
            caller = self._callers.get(event.request_id)
            if isinstance(event, SpeechResult):
                self._callers.pop(event.request_id, None)
                if event.audio is None:
                    self._failed += 1
                else:
                    self._completed += 1
                    self._audio_samples += len(event.audio)
                if caller is not None:  # an earlier engine's request is none of ours
                    self._tell(event)
            if caller is not None:
                caller.sink(event)

    def _tell(self, result: SpeechResult) -> None:
        if self._on_result is not None:
            try:
                self._on_result(result)
            except Exception:
                logger.exception("on_result failed for request %r", result.request_id)
