"""How much a command says beside its results: --verbose and --quiet."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from chatterbox_vllm.errors import ChatterboxError, ConfigError

logger = logging.getLogger("chatterbox_vllm")


class _OneLine(logging.Formatter):
    """`chatterbox-vllm: warning: …`, as errors look."""

    def format(self, record: logging.LogRecord) -> str:
        return f"chatterbox-vllm: {record.levelname.lower()}: {super().format(record)}"


class _Once(logging.Filter):
    """Drops what has been said before: a text is looked at before the model loads, and again when it is spoken."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = record.levelno < logging.WARNING or message not in self._said
        self._said.add(message)
        return new


@contextmanager
def shown(verbose: int, quiet: bool) -> Iterator[None]:
    """Within, standard error shows our warnings; progress on a terminal only; other libraries' errors only.

    Args:
        verbose: 1 shows what is being done; 2 shows everything, vLLM's own messages and the place of an error too.
        quiet: no warnings and no progress.

    Raises:
        ConfigError: both.
    """
    if verbose and quiet:
        raise ConfigError("--verbose and --quiet contradict each other: leave one of the two out")
    if quiet or not sys.stderr.isatty():
        # Read when these libraries are imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if verbose > 1:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    handler.addFilter(_Once())
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            if verbose < 2:
                warnings.filterwarnings("ignore", category=FutureWarning)
                warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    except ChatterboxError:
        logger.debug("this is where the error below rose:", exc_info=True)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
