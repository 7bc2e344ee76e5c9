"""What a command may do where the process is its own: `entry` takes it, and other callers of `main` do not."""

from __future__ import annotations

import gc

# Container objects made before the garbage collector looks for cycles among them, and how often it looks further.
_STARTING = (5_000_000, 20, 100)  # not at all: imports make a million and more that stay
_WORKING = (100_000, 20, 100)

_own = False


def take() -> None:
    """From now on the process is the command's own and ends with it."""
    global _own
    _own = True
    # Looking through what is imported, again and again, took a tenth of a start.
    gc.set_threshold(*_STARTING)


def is_own() -> bool:
    return _own


def started() -> None:
    """What the command works with is in memory."""
    if _own:
        gc.set_threshold(*_WORKING)
