"""Ctrl-C that no finaliser swallows.

Python raises KeyboardInterrupt wherever the main thread happens to stand. In a finaliser, or in a callback of the
garbage collector, an exception has nobody to rise to: Python hands it to `sys.unraisablehook`, which prints it, and the
command would go on as if nothing had been asked.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

_AGAIN_SECONDS = 0.02  # a finaliser has ended by then; if the next one is met, it comes once more


def keep_interrupts() -> None:
    """From now on an interrupt that a finaliser swallows is raised again a moment later. Call in the main thread."""
    report = sys.unraisablehook

    def raise_again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # A timer of the kernel's rather than a thread: a finaliser may run while any lock is held.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            report(unraisable)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = raise_again
