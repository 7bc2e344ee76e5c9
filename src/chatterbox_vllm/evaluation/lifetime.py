"""A process that lives no longer than the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of Linux's <sys/prctl.h>
_FAILED = 2


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that was, so that no model stays on the card.

    Linux only. A parent that ended before this call is noticed everywhere.

    Args:
        parent: the id of the process that started this one.

    Raises:
        SystemExit: it is gone.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(_FAILED)
