"""Threads that help with parallel work on a CPU: who has done with them gives them back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chatterbox_vllm.cpu import helpers

# Prints how many threads there are after parallel work in one thread, in a second one, and after both gave theirs back.
WORK = """
import os, threading, torch
from chatterbox_vllm.cpu.helpers import give_back_helpers

def count():
    return len(os.listdir("/proc/self/task"))

def work():
    torch.rand(1 << 22).exp_().sum()

work()
alone, may_end, has_worked = count(), threading.Event(), threading.Event()

def other():
    work()
    has_worked.set()
    may_end.wait()
    give_back_helpers()

thread = threading.Thread(target=other)
thread.start()
has_worked.wait()
two = count()
may_end.set()
thread.join()
one = count()
give_back_helpers()
none = count()
work()
print(two - alone, one - alone, none - alone, count() - alone)
"""


@pytest.mark.skipif(helpers._pause() is None, reason="PyTorch has another OpenMP than GNU's here")
def test_helpers_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr
    # A thread and its helper; all as before; no helper; one again.
    assert done.stdout.split() == ["2", "0", "-1", "0"]
