"""Speech that ends where a benchmark says, and not where the model would."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_WARNS = logging.getLogger("chatterbox_vllm.engine.job")


@contextmanager
def limits_meant() -> Iterator[None]:
    """Within, nobody is warned of a text that reaches its limit on tokens: here all do, and the lines take time."""
    before = _WARNS.level
    _WARNS.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _WARNS.setLevel(before)
