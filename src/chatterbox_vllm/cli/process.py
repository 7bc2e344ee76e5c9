"""What a command may do where the process is its own: `entry` takes it, and other callers of `main` do not."""

from __future__ import annotations

import gc

# Container objects made before the garbage collector looks for cycles among them, and how often it looks further: not
# at all, since imports make a million and more that stay.
_STARTING = (5_000_000, 20, 100)
_WORKING = gc.get_threshold()

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
    """What the command works with is in memory, and stays."""
    if _own:
        # Nothing of it is looked through again, so that looking is cheap and can be as frequent as Python has it: less
        # often, a server kept gigabytes of refused uploads in the tracebacks of their errors.
        gc.freeze()
        gc.set_threshold(*_WORKING)
