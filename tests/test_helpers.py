"""Threads that help with parallel work on a CPU: who has done with them gives them back."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import get_num_threads, set_num_threads  # before an engine starts, see t3/threads.py

from chatterbox_vllm.cpu import helpers

# Prints how many more threads there are beside one that has worked in parallel and its helper: when a second one has
# worked, when that one has given its helper back, when both have, and when the first works again.
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
alone = count()
worked, may_give_back, may_end = (threading.Event() for _ in range(3))

def other():
    work()
    worked.set()
    may_give_back.wait()
    give_back_helpers()
    may_end.wait()

threading.Thread(target=other).start()
worked.wait()
counts = [soon(alone + 2)]
may_give_back.set()
counts.append(soon(alone + 1))
give_back_helpers()
counts.append(soon(alone))
work()
counts.append(soon(alone + 1))
may_end.set()
print(*(found - alone for found in counts))
'''


@pytest.mark.skipif(helpers._pause() is None, reason="PyTorch has another OpenMP than GNU's here")
def test_helpers_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "1", "0", "1"]


@pytest.mark.skipif(helpers._number_setter() is None, reason="PyTorch computes without OpenMP here")
def test_without_helpers_within_and_with_them_afterwards() -> None:
    before = get_num_threads()
    set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="torn"), helpers.without_helpers():
            assert get_num_threads() == 1
            with ThreadPoolExecutor(1) as another:
                assert another.submit(get_num_threads).result() == 3
            raise ValueError("torn from its work")
        assert get_num_threads() == 3
    finally:
        set_num_threads(before)
