"""On how many of a CPU's threads T3's steps run: one where layers are small or on a card, and else all there are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch

# The function itself, taken before an engine starts: vLLM then puts one that does nothing in its place in `torch`, for
# the sake of threads that it has bound to cores, and here it binds none.
from torch import get_num_threads, set_num_threads

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.cpu.helpers import without_helpers
from chatterbox_vllm.t3.backbones import backbone_of

# Weights of a layer. A step hands work from thread to thread some fifty times. The small model (0.85 million) took 4 ms
# a step on one thread and 6 on two cores' two, 23 where another process wanted the cores, too, and no longer on one in
# batches of 16. The published model has 17 million.
_SMALL_LAYER = 2_000_000


def has_small_layers(config: T3Config) -> bool:
    """Whether a layer is computed sooner than threads share it out."""
    return backbone_of(config).layer_weights(config) <= _SMALL_LAYER


def threads_of_steps(config: T3Config, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What T3's work is to be done within. Beside a card only tables and prompts are a CPU's."""
    if device.type != "cpu":
        return without_helpers
    return functools.partial(on_one_thread, has_small_layers(config))


@contextlib.contextmanager
def on_one_thread(wanted: bool) -> Iterator[None]:
    """Within, PyTorch and vLLM compute on the calling thread alone; nothing changes where `wanted` is False."""
    threads = get_num_threads()
    if not wanted or threads == 1:
        yield
        return
    set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(threads)
