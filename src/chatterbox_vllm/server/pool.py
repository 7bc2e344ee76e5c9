"""The models of a server: each with its keeper, and the memory that they share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from chatterbox_vllm.errors import ConfigError, OverloadedError
from chatterbox_vllm.server.keeper import Keeper, State

if TYPE_CHECKING:
    from chatterbox_vllm.serving.async_engine import AsyncChatterbox

logger = logging.getLogger(__name__)

_GIB = 1 << 30


@dataclass(frozen=True)
class ServedModel:
    """One model that requests may name.

    Attributes:
        name: in requests.
        start: loads the model and opens its engine; called in a thread.
        voices: the names of those that come with it.
        voice_kind: of the voices that it can use, see `ModelConfig.voice_kind`.
        bytes: that it is expected to take; looked at where there is a budget.
        languages: that it speaks, English names by their codes.
        parameters: what it speaks with where a request says nothing, see `Family.parameters_of`.
    """

    name: str
    start: Callable[[], AsyncChatterbox]
    voices: tuple[str, ...] = ()
    voice_kind: str | None = None
    bytes: int = 0
    languages: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=dict)


def check_models(models: Sequence[ServedModel], budget: int | None) -> None:
    """Refuse models that cannot be served together, before any is loaded.

    Raises:
        ConfigError: two have one name, or one needs more than the budget.
    """
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(f"two of the models are called alike: {', '.join(names)}; rename one")
    for model in models:
        if budget is not None and model.bytes > budget:
            raise ConfigError(
                f"the model {model.name} is expected to take {model.bytes / _GIB:.2f} GiB, and models_memory_gb leaves "
                f"{budget / _GIB:.2f} GiB for all: raise it, or lay the model out smaller (max_batch_size, "
                "max_model_len, a tier)"
            )


class ModelPool:
    """Loads each model when a request names it. Use it from one event loop.

    Where there is a budget, the model that was used least recently is given back to make room: its requests end, later
    ones wait until it is loaded again, which takes turns with the others. What one model fails of leaves the others.

    Args:
        models: the first is the default.
        most: requests at once, of all models together.
        idle_seconds: after which an unused model is unloaded; None keeps it.
        budget: bytes that loaded models may take together; None sets no limit.
        on_failure: told once no model is left that can be loaded.
        engine: of the default model, where it is open already.

    Raises:
        ConfigError: see `check_models`.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        most: int,
        idle_seconds: float | None = None,
        budget: int | None = None,
        on_failure: Callable[[], None] | None = None,
        engine: AsyncChatterbox | None = None,
    ):
        check_models(models, budget)
        self.models = {model.name: model for model in models}
        self.most, self._budget, self._on_failure = most, budget, on_failure
        self.default = models[0].name
        self._taken: dict[str, None] = {}  # names of the models that take memory
        self._deciding = asyncio.Lock()
        self.keepers = {
            name: Keeper(
                model.start,
                idle_seconds,
                self._given_up,
                engine if name == self.default else None,
                _Share(self, name),
                name,
            )
            for name, model in self.models.items()
        }
        if engine is not None:
            self._taken[self.default] = None

    async def __aenter__(self) -> Self:
        for keeper in self.keepers.values():
            await keeper.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for keeper in self.keepers.values():
            await keeper.__aexit__(kind, error, trace)

    @property
    def engines(self) -> Iterator[AsyncChatterbox]:
        """Those that are open at this moment, to look at."""
        return (keeper.engine for keeper in self.keepers.values() if keeper.engine is not None)

    @property
    def is_healthy(self) -> bool:
        """Whether a request that comes now, for some model, will be spoken."""
        return any(keeper.is_healthy for keeper in self.keepers.values())

    def use(self, name: str) -> AbstractAsyncContextManager[AsyncChatterbox]:
        """`Keeper.use` of a model.

        Raises:
            OverloadedError: there are as many requests as may be.
        """
        users = sum(keeper.users for keeper in self.keepers.values())
        if users >= self.most:
            raise OverloadedError(f"{users} requests are on their way, the most that are taken; try again later")
        return self.keepers[name].use()

    async def make_room(self, name: str) -> None:
        """Wait until a model may be loaded, giving back those that were used least recently."""
        if name in self._taken:  # loaded anew after a failure
            return
        async with self._deciding:
            while (victim := self._in_the_way(name)) is not None:
                logger.info("the model %s is given back to make room for %s", victim, name)
                await self.keepers[victim].give_back()
            self._taken[name] = None

    def left(self, name: str) -> None:
        """A model takes no memory any more."""
        self._taken.pop(name, None)

    def _in_the_way(self, name: str) -> str | None:
        others = [other for other in self._taken if other != name]
        needed = self.models[name].bytes + sum(self.models[other].bytes for other in others)
        if self._budget is None or needed <= self._budget:
            return None
        return min(others, key=lambda other: self.keepers[other].last_use)

    def _given_up(self) -> None:
        if all(keeper.state is State.FAILED for keeper in self.keepers.values()) and self._on_failure is not None:
            self._on_failure()


@dataclass(frozen=True)
class _Share:
    """A model's share of the memory, for its keeper."""

    pool: ModelPool
    name: str

    async def take(self) -> None:
        await self.pool.make_room(self.name)

    def leave(self) -> None:
        self.pool.left(self.name)
