"""A model of a server: loaded, given back when idle or when others need the room, loaded anew when it has failed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from typing_extensions import Self

from chatterbox_vllm.server.errors import ApiError

if TYPE_CHECKING:
    from chatterbox_vllm.serving.async_engine import AsyncChatterbox

logger = logging.getLogger(__name__)

# Loads in a row that end without a request that succeeds; then the process had better be started anew.
_MOST_FAILURES = 3
_FIRST_PAUSE = 1.0  # seconds before the second attempt; each later one waits four times as long
_LOOK = 0.25  # seconds between looks at whether the engine lives and who uses it


class State(Enum):
    """What there is to speak with."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"  # because nobody asked
    ASLEEP = "asleep"  # the next request loads it
    FAILED = "failed"  # for good
    CLOSED = "closed"


class Share(Protocol):
    """The memory that models share."""

    async def take(self) -> None:
        """Wait until there is room for this one."""

    def leave(self) -> None:
        """This one needs no room any more."""


class Keeper:
    """Lends the engine to requests. Use it from one event loop.

    While there is no engine for the moment, requests wait for it.

    Args:
        start: loads a model and opens its engine; called in a thread.
        idle_seconds: after which an unused model is unloaded; None keeps it.
        on_failure: told once, when the engine has failed too often in a row.
        engine: one that is open already; its room is taken.
        share: asked for room before the model is loaded.
        name: of the model, for the log.
    """

    def __init__(
        self,
        start: Callable[[], AsyncChatterbox],
        idle_seconds: float | None = None,
        on_failure: Callable[[], None] | None = None,
        engine: AsyncChatterbox | None = None,
        share: Share | None = None,
        name: str = "the model",
    ):
        self._share, self._name = share, name
        self._start, self._idle_seconds, self._on_failure = start, idle_seconds, on_failure
        self._engine = engine
        self.state = State.ASLEEP if engine is None else State.READY
        self.users = 0
        self.loads = 0
        self.failure: Exception | None = None
        self._failures = 0  # since a request has succeeded
        self._changed = asyncio.Event()
        self._change: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.last_use = time.monotonic()
        self._turn = 0  # how often it was asked to be given back
        self._wanted_back = False
        self._users_of_turn: Counter[int] = Counter()
        self._mean_seconds = 2.0

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._watching())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._watch, self._change):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._unload()
        self._enter(State.CLOSED)

    @property
    def engine(self) -> AsyncChatterbox | None:
        """The engine of this moment, to look at; `use` lends one that lives."""
        return self._engine if self.state is State.READY else None

    @property
    def is_healthy(self) -> bool:
        """Whether a request that comes now will be spoken."""
        engine = self._engine
        if self.state is State.READY:
            return engine is not None and engine.failure is None
        return self.state in (State.UNLOADING, State.ASLEEP)

    @property
    def retry_after(self) -> float:
        """Seconds after which a refused request is likely to find room: what a request takes, on the average."""
        return min(60.0, max(1.0, self._mean_seconds))

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[AsyncChatterbox]:
        """An engine, which stays for as long as this is open unless it fails.

        Raises:
            ApiError: there is no engine and there will be none.
        """
        self.users += 1
        turn = self._turn
        self._users_of_turn[turn] += 1
        started = time.monotonic()
        engine = None
        try:
            engine = await self._ready(turn)
            yield engine
            if engine.failure is None:
                self._failures = 0
                self._mean_seconds += 0.1 * (time.monotonic() - started - self._mean_seconds)
        finally:
            self.users -= 1
            self._users_of_turn -= Counter((turn,))  # which forgets turns that are over
            self.last_use = time.monotonic()
            self._look()

    async def give_back(self) -> None:
        """Unload the model, once those have been served who came before; who comes later waits until it is back."""
        if not self._wanted_back:
            self._wanted_back = True
            self._turn += 1
        self._look()
        while self._wanted_back:
            await self._changed.wait()

    async def _ready(self, turn: int) -> AsyncChatterbox:
        while True:
            self._look()
            if self.state is State.ASLEEP:
                self._begin(self._load(), State.LOADING)
            too_late = self._wanted_back and turn == self._turn
            if self.state is State.READY and self._engine is not None and not too_late:
                return self._engine
            if self.state in (State.FAILED, State.CLOSED):
                raise ApiError(503, f"there is no model ({self.failure or self.state.value})", code="model_unavailable")
            await self._changed.wait()

    def _look(self) -> None:
        """Notice that the engine has failed, or that nobody has used it for long."""
        engine = self._engine
        if self.state is not State.READY or engine is None:
            return
        if engine.failure is not None:
            self.failure = engine.failure
            self._failures += 1
            logger.error("%s: the engine failed (%s); it is loaded anew", self._name, type(engine.failure).__name__)
            self._begin(self._load(), State.LOADING)
        elif self._wanted_back and not self._earlier_users:
            self._begin(self._sleep(), State.UNLOADING)
        elif self._idle_seconds is not None and not self.users and self._idle() >= self._idle_seconds:
            logger.info("%s: no request for %.0f s, unloaded until the next", self._name, self._idle_seconds)
            self._begin(self._sleep(), State.UNLOADING)

    @property
    def _earlier_users(self) -> int:
        """Who came before the model was wanted back."""
        return sum(count for turn, count in self._users_of_turn.items() if turn < self._turn)

    def _idle(self) -> float:
        return time.monotonic() - self.last_use

    async def _watching(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            self._look()

    def _begin(self, change: Coroutine[None, None, None], state: State) -> None:
        self._enter(state)
        self._change = asyncio.create_task(change)

    async def _load(self) -> None:
        pause = _FIRST_PAUSE
        await self._unload()
        if self._share is not None:
            await self._share.take()
        while self._failures < _MOST_FAILURES:
            try:
                self._engine = await self._started()
            except Exception as error:
                self.failure = error
                self._failures += 1
                logger.error("%s cannot be loaded: %s", self._name, error)
                if self._failures < _MOST_FAILURES:
                    await asyncio.sleep(pause)
                    pause *= 4
            else:
                self.loads += 1
                self.failure = None
                self.last_use = time.monotonic()
                self._enter(State.READY)
                return
        self._leave()
        self._enter(State.FAILED)
        logger.critical("%s has failed %d times in a row; it is given up", self._name, self._failures)
        if self._on_failure is not None:
            self._on_failure()

    async def _started(self) -> AsyncChatterbox:
        """What `start` gives. Where nobody waits for it any more, it is ended as soon as it is there."""
        thread = ThreadPoolExecutor(1, "chatterbox-load")
        loading = thread.submit(self._start)
        thread.shutdown(wait=False)
        try:
            return await asyncio.wrap_future(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_end_late)
            raise

    async def _sleep(self) -> None:
        await self._unload()
        self._leave()
        self._enter(State.ASLEEP)

    def _leave(self) -> None:
        self._wanted_back = False
        if self._share is not None:
            self._share.leave()

    async def _unload(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(_end, engine)

    def _enter(self, state: State) -> None:
        self.state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _end_late(loading: Future[AsyncChatterbox]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        _end(loading.result())


def _end(engine: AsyncChatterbox) -> None:
    """Free an engine and its model, whatever it died of."""
    for step in (engine.close, engine.tts.shutdown):
        try:
            step()
        except Exception as error:
            logger.warning("the model did not end well: %s", error)
