"""What machine this is, and what its device and memory do while a benchmark runs."""

from __future__ import annotations

import os
import platform
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from chatterbox_vllm import __version__


def machine(device: torch.device) -> dict[str, Any]:
    """Date, versions and names that a result is worth nothing without."""
    facts = {
        "date": date.today().isoformat(),
        "chatterbox-vllm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@dataclass
class Usage:
    """What was seen between entering and leaving a `Probe`.

    Attributes:
        gpu_busy_share: of samples in which a kernel ran, as the driver reports it; None on a CPU.
        peak_device_bytes: in use on the card, all processes, contexts included; None on a CPU.
        peak_host_bytes: the process's largest resident size since it started.
    """

    gpu_busy_share: float | None = None
    peak_device_bytes: int | None = None
    peak_host_bytes: int = 0


def device_bytes_in_use(device: torch.device) -> int:
    """Of a CUDA device, by all processes and with their contexts, as the driver sees it. Makes no context."""
    driver, handle = _driver(device)
    return int(driver.nvmlDeviceGetMemoryInfo(handle).used)


def _driver(device: torch.device) -> tuple[Any, Any]:
    """NVML, and what it calls the device."""
    from vllm.third_party import pynvml

    pynvml.nvmlInit()
    return pynvml, pynvml.nvmlDeviceGetHandleByIndex(_physical_index(device.index or 0))


class Probe:
    """A `with` block that samples the driver every `interval` seconds."""

    def __init__(self, device: torch.device, interval: float = 0.05):
        self.device = device
        self.interval = interval
        self.usage = Usage()
        self._stop = threading.Event()
        self._busy: list[float] = []
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self._stop.set()
            self._thread.join()
            self.usage.gpu_busy_share = sum(self._busy) / len(self._busy) if self._busy else None
        self.usage.peak_host_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _sample(self) -> None:
        driver, handle = _driver(self.device)
        peak = 0
        while not self._stop.wait(self.interval):
            self._busy.append(driver.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
            peak = max(peak, driver.nvmlDeviceGetMemoryInfo(handle).used)
        self.usage.peak_device_bytes = int(peak)


def _physical_index(index: int) -> int:
    """The driver's number of a device; CUDA_VISIBLE_DEVICES renumbers them for PyTorch."""
    visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip().isdigit()]
    return int(visible[index]) if index < len(visible) else index


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
