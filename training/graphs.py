"""A training step that a CUDA graph repeats: no launch waits for Python."""

from __future__ import annotations

from collections.abc import Callable

import torch

Noted = dict[str, torch.Tensor]
_EAGER_STEPS = 5  # in which optimizers make their state and libraries choose their kernels


class RepeatedStep:
    """Calls `step`; on CUDA, from the sixth call on, what was recorded of it.

    Args:
        step: reads and writes tensors that stay where they are, never waits for the device, and returns numbers to
            note. Its random numbers come from the device's own generator.
        graphs: False calls `step` every time.
    """

    def __init__(self, step: Callable[[], Noted], device: torch.device, graphs: bool):
        self._step, self._graphs = step, graphs and device.type == "cuda"
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._noted: Noted = {}
        self._done: torch.cuda.Event | None = None

    def __call__(self) -> Noted:
        self._calls += 1
        if not self._graphs:
            return self._step()
        if self._graph is None and self._calls <= _EAGER_STEPS:
            return self._aside()
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        self._wait_for_the_last()
        return self._noted

    def _wait_for_the_last(self) -> None:
        """Python stays one step ahead of the device and no more, so that the clock tells what has been done."""
        done = torch.cuda.Event()
        done.record()
        if self._done is not None:
            self._done.synchronize()
        self._done = done

    def _aside(self) -> Noted:
        """The step on a stream of its own, as recording wants it to have been run."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            noted = self._step()
        torch.cuda.current_stream().wait_stream(stream)
        return noted

    def _record(self) -> None:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._noted = self._step()
        self._graph = graph
        print(f"recorded a CUDA graph, {torch.cuda.memory_allocated() / 2**30:.1f} GiB in use", flush=True)
