"""Compiled operators of shapes that do not come back take no memory for good."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chatterbox_vllm.caches.primitives import MOST

GROWTH = """
import ctypes, os, sys
from chatterbox_vllm.caches.primitives import bound_primitive_caches
bound_primitive_caches()
import torch
from chatterbox_vllm.cpu.linear import Linear
from chatterbox_vllm.s3gen.vocoder.convolutions import Conv, by_frame
def resident():
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
layers = {
    "conv": (Conv(256, 256, 7, padding=3), lambda length: by_frame(torch.zeros(1, 256, length))),
    "linear": (Linear(256, 1024), lambda length: torch.zeros(1, length, 256)),
}
layer, of_length = layers[sys.argv[1]]
with torch.no_grad():
    layer(of_length(64))
    before = resident()
    for length in range(65, 565):
        layer(of_length(length))
print(resident() - before)
"""


def growth(layer: str, **more: str) -> float:
    """MiB that 500 shapes leave behind."""
    environment = {name: value for name, value in os.environ.items() if name not in MOST} | more
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, layer], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout)


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_few_are_kept_unless_the_environment_says_otherwise(layer: str) -> None:
    assert growth(layer) < 0.5 * growth(layer, **dict.fromkeys(MOST, "1024"))
