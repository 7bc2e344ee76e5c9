"""What a device and the memory do while something runs: samples of the driver, and seconds spent in a method."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from typing_extensions import Self

from chatterbox_vllm.cuda.driver import Card

# Who counted the bytes on a device: the driver for this process, or PyTorch's allocator, without CUDA's context.
CountedBy = Literal["driver", "allocator"]


@dataclass
class Usage:
    """What was seen between entering and leaving a `Probe`.

    Attributes:
        gpu_busy_share: of samples in which a kernel of any process ran on the card; None on a CPU, or where
            the driver does not tell.
        peak_device_bytes: most that this process held on the card; None on a CPU.
        counted_by: who counted them; None on a CPU.
        peak_host_bytes: the process's largest resident size since it started.
    """

    gpu_busy_share: float | None = None
    peak_device_bytes: int | None = None
    counted_by: CountedBy | None = None
    peak_host_bytes: int = 0


class Probe:
    """A `with` block that samples a device every `interval` seconds.

    Raises:
        DeviceError: the driver of a CUDA device does not answer.
    """

    def __init__(self, device: torch.device, interval: float = 0.05):
        self.device = device
        self.interval = interval
        self.usage = Usage()
        self._stop = threading.Event()
        self._busy: list[float] = []
        self._peaks: dict[CountedBy, int] = {}
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            self._thread = threading.Thread(target=self._sample, args=(Card.of(self.device),), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.usage.peak_host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure
        self.usage.gpu_busy_share = sum(self._busy) / len(self._busy) if self._busy else None
        # The driver sees more; it does not know this process before its first kernel, nor by its number in a container.
        self.usage.counted_by = "driver" if "driver" in self._peaks else "allocator"
        self.usage.peak_device_bytes = self._peaks.get(self.usage.counted_by, 0)

    def _sample(self, card: Card) -> None:
        try:
            while not self._stop.wait(self.interval):
                if (busy := card.busy_share()) is not None:
                    self._busy.append(busy)
                self._keep("driver", card.own_bytes())
                self._keep("allocator", torch.cuda.memory_reserved(self.device))
        except Exception as failure:  # raised where the block ends
            self._failure = failure

    def _keep(self, who: CountedBy, count: int | None) -> None:
        if count is not None:
            self._peaks[who] = max(self._peaks.get(who, 0), count)


class Stopwatch:
    """Counts the seconds spent in one method of an object, by standing before it.

    Attributes:
        counted: sum of what `count` says of each call's result.
    """

    def __init__(self, owner: Any, method: str, count: Callable[[Any], int] = lambda result: 0):
        self.seconds = 0.0
        self.counted = 0
        self._owner, self._method, self._count = owner, method, count

    def __enter__(self) -> Self:
        inner = getattr(self._owner, self._method)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                result = inner(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - start
            self.counted += self._count(result)
            return result

        setattr(self._owner, self._method, timed)
        return self

    def __exit__(self, *exception: object) -> None:
        delattr(self._owner, self._method)


class BatchWatch:
    """Counts the seconds in which a stage has batches in work: from `launch` until what that returns has waited."""

    def __init__(self, stage: Any):
        self.seconds = 0.0
        self._stage, self._lock = stage, threading.Lock()
        self._batches, self._since = 0, 0.0

    def __enter__(self) -> Self:
        inner = self._stage.launch

        def launch(*arguments: Any) -> Callable[[], Any]:
            self._count(1)
            try:
                wait = inner(*arguments)
            except BaseException:
                self._count(-1)
                raise

            def waited() -> Any:
                try:
                    return wait()
                finally:
                    self._count(-1)

            return waited

        self._stage.launch = launch
        return self

    def __exit__(self, *exception: object) -> None:
        del self._stage.launch

    def _count(self, change: int) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._batches:
                self.seconds += now - self._since
            self._batches, self._since = self._batches + change, now
