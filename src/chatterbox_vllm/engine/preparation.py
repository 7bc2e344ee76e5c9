"""What a request needs before its first token, done outside the engine's thread.

A text is split, tokenized and conditioned; a recording is decoded and its speech tokens are found.
"""

from __future__ import annotations

import logging
import queue
from concurrent.futures import ThreadPoolExecutor

from chatterbox_vllm.engine.conversion import ConversionRequest, Request
from chatterbox_vllm.engine.listening import SourceReader
from chatterbox_vllm.engine.prompts import PromptMaker, Script
from chatterbox_vllm.errors import ChatterboxError, ConfigError, GenerationError

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
        self._pending = 0

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
        return self._pending

    def add(self, serial: int, request: Request) -> None:
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

    def _prepare(self, serial: int, request: Request) -> None:
        try:
            script: Script | ChatterboxError = self._script(request)
        except ChatterboxError as error:
            script = error
        except Exception as error:  # whatever it is, it is this request's alone
            logger.exception("a request could not be prepared")
            script = GenerationError(f"the request could not be prepared ({type(error).__name__}: {error})")
        self._finished.put((serial, script))

    def _script(self, request: Request) -> Script:
        if isinstance(request, ConversionRequest):
            if self.sources is None:
                raise ConfigError("this engine converts no recordings; ChatterboxVC does")
            return self.sources.script(request)
        return self.prompts.script(request)
