"""vLLM's CUDA graphs, recorded on a stream of ours: kernels in a graph keep the priority of the recording stream."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from chatterbox_vllm.cuda.streams import on_stream


@contextlib.contextmanager
def working_on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Within, an engine starts on `stream` and records its graphs there; for None nothing changes.

    vLLM 0.32 works on the thread's current stream, but records on a new one of PyTorch's normal priority, the lowest
    that CUDA has. The function that makes it has no parameter for another, so it is replaced for the time of the start.
    So is PyTorch's default by which a recording fails where another thread, another model's, allocates meanwhile. Both
    are the process's: call this under `cuda.graphs.recording`.
    """
    if stream is None:
        yield
        return
    from vllm.distributed import parallel_state
    from vllm.v1.worker import gpu_model_runner

    @contextlib.contextmanager
    def graph_capture(device: torch.device) -> Iterator[Any]:
        context = parallel_state.GraphCaptureContext(stream)
        with (
            parallel_state.get_tp_group().graph_capture(context),
            parallel_state.get_pp_group().graph_capture(context),
            parallel_state.get_dp_group().graph_capture(context),
        ):
            yield context

    among_others = functools.partial(torch.cuda.graph, capture_error_mode="thread_local")
    with (
        mock.patch.object(gpu_model_runner, "graph_capture", graph_capture),
        mock.patch.object(torch.cuda, "graph", among_others),
        on_stream(stream),
    ):
        yield
