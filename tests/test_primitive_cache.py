"""Compiled operators of shapes that do not come back take no memory for good."""

from __future__ import annotations

import os
import subprocess
import sys

from chatterbox_vllm.caches.primitives import CAPACITY

GROWTH = """
import os, sys
from chatterbox_vllm.caches.primitives import bound_primitive_cache
bound_primitive_cache()
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
conv = torch.nn.Conv1d(256, 256, 7, padding=3)
with torch.no_grad():
    conv(torch.zeros(1, 256, 64))
    before = resident()
    for length in range(65, 465):
        conv(torch.zeros(1, 256, length))
print(resident() - before)
"""


def growth(**more: str) -> float:
    """MiB that 400 shapes leave behind."""
    environment = {name: value for name, value in os.environ.items() if name != CAPACITY} | more
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout)


def test_few_are_kept_unless_the_environment_says_otherwise() -> None:
    assert growth() < 0.5 * growth(**{CAPACITY: "1024"})
