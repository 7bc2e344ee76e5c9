"""Threads that help with parallel work on a CPU: who has done with them gives them back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chatterbox_vllm.cpu import helpers

# Prints how many threads there are after parallel work in one thread, in a second one, and after both gave theirs back.
WORK = '''
import os, threading, time, torch
from chatterbox_vllm.cpu.helpers import give_back_helpers

def count():
    return len(os.listdir("/proc/self/task"))

def soon(expected):
    """How many there are, once they are as many or after a while: a thread ends a moment after it is told to."""
    until = time.monotonic() + 20
    while count() != expected and time.monotonic() < until:
        time.sleep(0.01)
    return count()

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
two = soon(alone + 2)
may_end.set()
thread.join()
one = soon(alone)
give_back_helpers()
none = soon(alone - 1)
work()
print(two - alone, one - alone, none - alone, soon(alone) - alone)
'''


@pytest.mark.skipif(helpers._pause() is None, reason="PyTorch has another OpenMP than GNU's here")
def test_helpers_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr
    # A thread and its helper; all as before; no helper; one again.
    assert done.stdout.split() == ["2", "0", "-1", "0"]
