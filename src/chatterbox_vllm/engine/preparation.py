"""What a request needs before its first token, done outside the engine's thread.

A text is split, tokenized and conditioned; a recording is decoded and its speech tokens are found.
"""

from __future__ import annotations

import logging
import queue
from concurrent.futures import ThreadPoolExecutor

from chatterbox_vllm.cpu.helpers import give_back_helpers
from chatterbox_vllm.engine.conversion import ConversionRequest, Request
from chatterbox_vllm.engine.listening import SourceReader
from chatterbox_vllm.engine.prompts import PromptMaker, Script
from chatterbox_vllm.errors import AbortedError, ChatterboxError, ConfigError, GenerationError

logger = logging.getLogger(__name__)

Prepared = tuple[int, Script | ChatterboxError]


class Preparation:
    """Makes the scripts of requests, several at once; a request that cannot be prepared has its error instead.

    Args:
        prompts: for texts; None where there is no T3.
        sources: for recordings; None where they are not converted.
        threads: that work at once; 0 works in the caller's, which makes the order of things certain.
    """

    def __init__(self, prompts: PromptMaker | None, threads: int, sources: SourceReader | None = None):
        self._prompts, self.sources = prompts, sources
        self._finished: queue.SimpleQueue[Prepared] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(threads, "chatterbox-prepare") if threads else None
        # A recording takes long, and texts are not to wait for it.
        self._listener = ThreadPoolExecutor(1, "chatterbox-listen") if threads and sources else None
        self._dropped: set[int] = set()
        self._pending: set[int] = set()
        self._closed = False

    @property
    def prompts(self) -> PromptMaker:
        """What makes T3's prompts of texts.

        Raises:
            ConfigError: there is no T3.
        """
        if self._prompts is None:
            raise ConfigError("only S3Gen is loaded here, which converts recordings; ChatterboxTTS speaks texts")
        return self._prompts

    @property
    def pending(self) -> int:
        """Requests that were handed in and did not come out of `finished` yet."""
        return len(self._pending)

    @property
    def ready(self) -> bool:
        """Whether `finished` has something to give."""
        return not self._finished.empty()

    def add(self, serial: int, request: Request) -> None:
        """Hand in a request under its number."""
        self._pending.add(serial)
        pool = self._listener if isinstance(request, ConversionRequest) else self._pool
        if pool is None:
            self._prepare(serial, request)
        else:
            pool.submit(self._prepare, serial, request)

    def drop(self, serial: int) -> None:
        """Nobody waits for this request any more; it still comes out of `finished`."""
        if serial in self._pending:
            self._dropped.add(serial)

    def finished(self, patience: float) -> list[Prepared]:
        """What is ready, after waiting up to `patience` seconds for the first."""
        found: list[Prepared] = []
        while self._pending:
            try:
                found.append(self._finished.get(timeout=0 if found or not patience else patience))
            except queue.Empty:
                break
            self._pending.discard(found[-1][0])
            self._dropped.discard(found[-1][0])
        return found

    def close(self) -> None:
        """End the threads. What they still work on is thrown away."""
        self._closed = True
        for pool in (self._pool, self._listener):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, serial: int, request: Request) -> None:
        try:
            script: Script | ChatterboxError = self._script(serial, request)
        except ChatterboxError as error:
            script = error
        except Exception as error:  # whatever it is, it is this request's alone
            logger.exception("a request could not be prepared")
            script = GenerationError(f"the request could not be prepared ({type(error).__name__}: {error})")
        if self._pool is not None:
            give_back_helpers()  # before T3 begins with it
        self._finished.put((serial, script))

    def _script(self, serial: int, request: Request) -> Script:
        if isinstance(request, ConversionRequest):
            if self.sources is None:
                raise ConfigError("this engine converts no recordings; ChatterboxVC does")
            return self.sources.script(request, lambda: self._check_wanted(serial))
        return self.prompts.script(request)

    def _check_wanted(self, serial: int) -> None:
        if self._closed or serial in self._dropped:
            raise AbortedError("nobody waits for this recording any more")
