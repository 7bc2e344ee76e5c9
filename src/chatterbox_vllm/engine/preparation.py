"""What a request needs before its first token, done outside the engine's thread: splitting, tokens, conditioning."""

from __future__ import annotations

import logging
import queue
from concurrent.futures import ThreadPoolExecutor

from chatterbox_vllm.engine.prompts import PromptMaker, Script
from chatterbox_vllm.engine.request import SpeechRequest
from chatterbox_vllm.errors import ChatterboxError, GenerationError

logger = logging.getLogger(__name__)

Prepared = tuple[int, Script | ChatterboxError]


class Preparation:
    """Makes the scripts of requests, several at once; a request that cannot be prepared has its error instead.

    Args:
        threads: that work at once; 0 works in the caller's, which makes the order of things certain.
    """

    def __init__(self, prompts: PromptMaker, threads: int):
        self.prompts = prompts
        self._finished: queue.SimpleQueue[Prepared] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(threads, "chatterbox-prepare") if threads else None
        self._pending = 0

    @property
    def pending(self) -> int:
        """Requests that were handed in and did not come out of `finished` yet."""
        return self._pending

    def add(self, serial: int, request: SpeechRequest) -> None:
        """Hand in a request under its number."""
        self._pending += 1
        if self._pool is None:
            self._prepare(serial, request)
        else:
            self._pool.submit(self._prepare, serial, request)

    def finished(self, patience: float) -> list[Prepared]:
        """What is ready, after waiting up to `patience` seconds for the first."""
        found: list[Prepared] = []
        while self._pending:
            try:
                found.append(self._finished.get(timeout=0 if found or not patience else patience))
            except queue.Empty:
                break
            self._pending -= 1
        return found

    def close(self) -> None:
        """End the threads. What they still work on is thrown away."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, serial: int, request: SpeechRequest) -> None:
        try:
            script: Script | ChatterboxError = self.prompts.script(request)
        except ChatterboxError as error:
            script = error
        except Exception as error:  # whatever it is, it is this request's alone
            logger.exception("a request could not be prepared")
            script = GenerationError(f"the request could not be prepared ({type(error).__name__}: {error})")
        self._finished.put((serial, script))
