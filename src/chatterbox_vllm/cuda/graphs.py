"""CUDA graphs: a function of tensors recorded once for each set of input shapes, then replayed without its launches."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Held while a graph is recorded: PyTorch lends CUDA's default generator to the recording, and another thread that draws
# from it meanwhile fails. T3's sampler does, so its steps take this lock, too.
recording = threading.Lock()

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.inputs, self.output))


class GraphedFunction:
    """Calls `function(*inputs)` through a CUDA graph of exactly these shapes and dtypes, recorded at first use.

    What the caller must keep to: the function allocates all it needs, reads nothing on the host, and depends on its
    inputs and on tensors that stay where they are; `forget` after these moved. Inputs come in few shapes (buckets): of
    the recordings only those used last are kept, up to both limits. Working memory is shared by all recordings. For
    one thread and one CUDA stream at a time.

    Args:
        most: recordings kept.
        most_bytes: of the kept recordings' own inputs and outputs, together.
    """

    def __init__(self, function: Callable[..., torch.Tensor], most: int = 64, most_bytes: int = 512 << 20):
        self.function = function
        self.most, self.most_bytes = most, most_bytes
        self._recordings: OrderedDict[Shapes, _Recording] = OrderedDict()
        self._pool: tuple[int, int] | None = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The function's result; overwritten by the next call with these shapes."""
        shapes = tuple((t.shape, t.dtype) for t in inputs)
        recording = self._recordings.get(shapes)
        if recording is None:
            recording = self._recordings[shapes] = self._record(inputs)
            self._evict()
        else:
            self._recordings.move_to_end(shapes)
            for kept, given in zip(recording.inputs, inputs, strict=True):
                kept.copy_(given, non_blocking=True)
        recording.graph.replay()
        return recording.output

    def __len__(self) -> int:
        return len(self._recordings)

    @property
    def bytes(self) -> int:
        """Held by the recordings' own inputs and outputs; the shared working memory is not in it."""
        return sum(recording.bytes for recording in self._recordings.values())

    def forget(self) -> None:
        """Drop all recordings."""
        self._recordings.clear()
        self._pool = None

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> _Recording:
        kept = tuple(t.clone() for t in inputs)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.function(*kept)  # compiles kernels and makes libraries' workspaces, which a recording cannot
        torch.cuda.current_stream().wait_stream(aside)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads (T3 in the same process) may allocate meanwhile.
        with recording, torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self.function(*kept)
        return _Recording(graph, kept, output)

    def _evict(self) -> None:
        while len(self) > 1 and (len(self) > self.most or self.bytes > self.most_bytes):
            self._recordings.popitem(last=False)
