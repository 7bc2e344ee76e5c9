"""CUDA streams by urgency: where several kinds of work share a card, the more urgent is served first."""

from __future__ import annotations

from enum import IntEnum

import torch


class Urgency(IntEnum):
    """Stream priorities, as CUDA counts them: the lower the number, the sooner a waiting kernel gets its turn.

    A kernel that is running is not stopped, only the next one is chosen. A kernel in a CUDA graph keeps the priority of
    the stream that it was recorded on.
    """

    HIGHEST = -3  # many short kernels, each of which the host waits for: T3's steps
    SOON = -2  # short work on the way to a listener: watermarks of chunks
    MIDDLE = -1  # large kernels in batches: S3Gen
    LOWEST = 0  # what nobody waits for at once: other watermarks; also PyTorch's own streams


def new_stream(device: torch.device, urgency: Urgency) -> torch.cuda.Stream | None:
    """A stream of that urgency; None on other devices, which `on_stream` takes for "as it is".

    PyTorch has 32 streams of each priority and hands them out again and again. Nothing here is ever recorded on a
    stream of the lowest urgency, so other work on such a stream cannot end up in a graph.
    """
    return torch.cuda.Stream(device, priority=urgency) if device.type == "cuda" else None


def on_stream(stream: torch.cuda.Stream | None) -> torch.cuda.StreamContext:
    """A `with` block whose CUDA work goes to `stream`; for None nothing changes."""
    return torch.cuda.stream(stream)
