"""Compiled operators that are kept on a CPU: one for every shape of every convolution and linear layer."""

from __future__ import annotations

import os

# The libraries' variables, and numbers in place of their own 1024. Chunks and batches come in ever new shapes. oneDNN
# keeps operators of all kinds: with 128 (and with 16) 600 shapes of one convolution take 34 MB in place of 289, and 30
# streamed texts the same processor time within 5 %. PyTorch's layer above it keeps those of linear layers besides: with
# 64, 1,160 shapes take 38 MB in place of 219, nearly all of which stays where oneDNN keeps 16.
MOST = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 128, "LRU_CACHE_CAPACITY": 64}


def bound_primitive_caches() -> None:
    """Keep at most `MOST` compiled operators, or as many as a variable says where it is set.

    The libraries read the variables at their first operator, so this has no effect in a process that has computed
    before.
    """
    for name, most in MOST.items():
        os.environ.setdefault(name, str(most))
