"""CUDA graphs: a function of tensors recorded once for each set of input shapes, then replayed without its launches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch

from chatterbox_vllm.cuda.streams import Urgency, new_stream

# Held while a graph is recorded: PyTorch lends CUDA's default generator to the recording, and another thread that draws
# from it meanwhile fails. T3's sampler does, so its steps take this lock, too.
recording = threading.Lock()

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The one stream of a device that all graphs are recorded on: the memory that a stream has used stays its own."""
    return new_stream(device, Urgency.MIDDLE)


class GraphPool:
    """Memory that the graphs of several functions share, of which one runs at a time."""

    @cached_property
    def handle(self) -> tuple[int, int]:
        return torch.cuda.graph_pool_handle()


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: Any


class GraphedFunction:
    """Calls `function(*inputs)` through a CUDA graph of exactly these shapes and dtypes.

    What the caller must keep to: the function allocates all it needs, reads nothing on the host, and depends on its
    inputs and on tensors that stay where they are. Inputs come in few shapes, told to `record` before they are needed,
    those with the most rows first: smaller ones then share the memory of larger ones. A shape that was not told is
    recorded at its first call as long as there are fewer than `most`; a shape beyond those is called without a graph.
    For one thread and one CUDA stream at a time. The function may change its first inputs and return them.

    Args:
        pool: shared with other functions: then the next call of any of them overwrites the result.
        steady: inputs from this number on are not copied again where the call before was given the same tensors; nobody
            may change them in between.

    Attributes:
        count: graphs recorded so far.
    """

    def __init__(self, function: Callable[..., Any], most: int, pool: GraphPool, steady: int | None = None):
        self.function = function
        self.most, self.pool, self.steady = most, pool, steady
        self._recordings: dict[Shapes, _Recording] = {}
        self._last: tuple[_Recording, tuple[torch.Tensor, ...]] | None = None

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The function's result, a tensor or several; overwritten by the next call."""
        shapes = _shapes(inputs)
        if shapes not in self._recordings and len(self._recordings) >= self.most:
            return self.function(*inputs)
        self.record(*inputs)
        recorded = self._recordings[shapes]
        there = self._there(recorded)
        for i, (kept, given) in enumerate(zip(recorded.inputs, inputs, strict=True)):
            if given is not kept and given is not there[i]:
                kept.copy_(given, non_blocking=True)
        self._last = recorded, inputs
        recorded.graph.replay()
        return recorded.output

    def _there(self, recorded: _Recording) -> tuple[torch.Tensor | None, ...]:
        """What lies in the inputs of a recording since the last call, unchanged; None where anything may."""
        if self._last is None or self._last[0] is not recorded or self.steady is None:
            return (None,) * len(recorded.inputs)
        return (None,) * self.steady + self._last[1][self.steady :]

    @property
    def count(self) -> int:
        return len(self._recordings)

    def record(self, *inputs: torch.Tensor) -> None:
        """Record a graph for inputs of these shapes, if there is none."""
        shapes = _shapes(inputs)
        if shapes in self._recordings:
            return
        self._last = None  # inputs share memory
        kept = tuple(self._room(i, given).copy_(given) for i, given in enumerate(inputs))
        self.function(*kept)  # compiles kernels and loads libraries, which must not happen in a recording
        device = inputs[0].device
        graph = torch.cuda.CUDAGraph()
        # Other threads (T3 in the same process) may allocate meanwhile.
        with (
            recording,
            torch.cuda.graph(graph, self.pool.handle, _side_stream(device), capture_error_mode="thread_local"),
        ):
            output = self.function(*kept)
        self._recordings[shapes] = _Recording(graph, kept, output)

    def _room(self, i: int, given: torch.Tensor) -> torch.Tensor:
        """Where the graph finds its input number i: the first rows of a larger recording's, or memory of its own."""
        for recorded in self._recordings.values():
            kept = recorded.inputs[i]
            if kept.dtype != given.dtype or kept.dim() != given.dim() or kept.shape[1:] != given.shape[1:]:
                continue
            if kept.dim() == 0:
                return kept
            if len(kept) >= len(given):
                return kept[: len(given)]
        return torch.empty_like(given, memory_format=torch.contiguous_format)


def _shapes(inputs: tuple[torch.Tensor, ...]) -> Shapes:
    return tuple((t.shape, t.dtype) for t in inputs)
