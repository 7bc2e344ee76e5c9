"""The stages of one loaded model with the scheduler between them: who may use them, and their end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

from chatterbox_vllm.engine.conversion import Request
from chatterbox_vllm.engine.request import AudioChunk, SpeechResult
from chatterbox_vllm.engine.run import run_all, stream_one
from chatterbox_vllm.engine.scheduler import Scheduler
from chatterbox_vllm.engine.synthesis import Synthesis
from chatterbox_vllm.engine.talker import Talker
from chatterbox_vllm.errors import ConfigError

T = TypeVar("T")
Talking = TypeVar("Talking", bound=Talker)

_SHUT_DOWN = "this model was shut down; load it again"


class Engine(Generic[Talking]):
    """Has one user at a time: an iterator of `run`, or whoever was lent it. `shutdown` may come from any thread."""

    def __init__(self, scheduler: Scheduler, talker: Talking, voicing: Synthesis):
        self.scheduler = scheduler
        self.talker = talker
        self.voicing = voicing
        self.is_shut_down = False
        self._lending = threading.Lock()
        self._stepping = threading.RLock()  # held while an iterator of `run` works
        self._in_use = False
        self._end_use: Callable[[], None] | None = None

    def lend(self, end_use: Callable[[], None] | None = None) -> None:
        """Let somebody use scheduler and stages, who calls `give_back` in the end.

        Args:
            end_use: what `shutdown` calls first, to make the user give it back.

        Raises:
            ConfigError: the model was shut down, or somebody has it.
        """
        with self._lending:
            if self.is_shut_down:
                raise ConfigError(_SHUT_DOWN)
            if self._in_use:
                raise ConfigError(
                    "the model is in use: exhaust or close() the iterator of an earlier run, or close its "
                    "AsyncChatterbox"
                )
            self._in_use, self._end_use = True, end_use

    def give_back(self) -> None:
        """The end of `lend`."""
        with self._lending:
            self._in_use, self._end_use = False, None

    def run(
        self, requests: Iterable[Request], on_step: Callable[[int], None] | None = None
    ) -> Generator[SpeechResult, None, None]:
        """`run_all` as the engine's one user.

        Raises:
            ConfigError: see `lend`; also where the model is shut down meanwhile.
        """
        return self._alone(run_all(self.scheduler, requests, on_step))

    def stream(self, request: Request) -> Generator[AudioChunk | SpeechResult, None, None]:
        """A request's chunks as they are rendered, then its result; the engine's one user meanwhile.

        Raises:
            ConfigError: as `run`.
            ChatterboxError: the request failed.
        """
        return self._alone(stream_one(self.scheduler, request))

    def _alone(self, events: Generator[T, None, None]) -> Generator[T, None, None]:
        """What the engine's one user gets, from when it is first asked for."""
        self.lend()
        try:
            while True:
                with self._stepping:
                    if self.is_shut_down:
                        raise ConfigError(_SHUT_DOWN)
                    event = next(events, None)
                if event is None:
                    return
                yield event
        finally:
            with self._stepping:  # `shutdown` may be at work
                events.close()
            self.give_back()

    def shutdown(self) -> bool:
        """End the use that is going on, stop the stages and free their memory; False if that was done before."""
        if (end_use := self._end_use) is not None:
            end_use()
        with self._stepping, self._lending:
            if self.is_shut_down:
                return False
            self.is_shut_down = True
            self.scheduler.abort_all()
        self.scheduler.preparation.close()
        self.voicing.close()
        self.voicing.stage.release()
        self.talker.close()
        return True
