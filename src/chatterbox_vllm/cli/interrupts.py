"""Ctrl-C that no finaliser swallows, and other signals that end a command as Ctrl-C does.

Python raises KeyboardInterrupt wherever the main thread happens to stand. In a finaliser, or in a callback of the
garbage collector, an exception has nobody to rise to: Python hands it to `sys.unraisablehook`, which prints it, and the
command would go on as if nothing had been asked.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

_AGAIN_SECONDS = 0.02  # a finaliser has ended by then; if the next one is met, it comes once more
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """A signal told the command to end; `signal.Signals` is its argument."""

    @property
    def signal(self) -> signal.Signals:
        return signal.Signals(self.args[0])


@contextmanager
def endings_raised() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise `Ended`, so that what was begun is put away. Call in the main thread.

    One that is ignored stays so: `nohup` asked for it.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    raised = [number for number in _ENDING if before[number] is not signal.SIG_IGN]

    def end(number: int, frame: Any) -> NoReturn:
        for each in raised:  # a closing terminal or a service manager sends more than one
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    for number in raised:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in raised:
            signal.signal(number, before[number])


def keep_interrupts() -> None:
    """From now on an interrupt that a finaliser swallows is raised again a moment later. Call in the main thread."""
    report = sys.unraisablehook

    def raise_again(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return report(unraisable)
        swallowed = unraisable.exc_type(*unraisable.exc_value.args)

        def interrupt(number: int, frame: Any) -> NoReturn:
            raise swallowed

        # A timer of the kernel's rather than a thread: a finaliser may run while any lock is held.
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)

    sys.unraisablehook = raise_again
