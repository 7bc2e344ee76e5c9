"""What a command changes of its own process."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from chatterbox_vllm.cli import process
usual = gc.get_threshold()
process.started()
assert gc.get_threshold() == usual and not gc.get_freeze_count()  # not the command's own process
process.take()
assert gc.get_threshold() > usual
process.started()
assert gc.get_threshold() == usual and gc.get_freeze_count()
"""


def test_garbage_is_looked_for_as_usual_once_a_command_has_started() -> None:
    """A server that looked seldom kept gigabytes of refused uploads, in the tracebacks of their errors."""
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=60)
