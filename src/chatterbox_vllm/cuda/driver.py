"""What NVIDIA's driver says of a card and of this process on it, by its management library (NVML)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pynvml
import torch

from chatterbox_vllm.errors import DeviceError

# How NVML begins the names of whole cards and of parts of cards; PyTorch leaves that out.
_KINDS = ("GPU", "MIG")


@dataclass(frozen=True)
class Card:
    """One CUDA device as the driver knows it, however CUDA_VISIBLE_DEVICES orders what PyTorch sees.

    Attributes:
        handle: NVML's.
    """

    handle: Any

    @classmethod
    def of(cls, device: torch.device) -> Card:
        """The card behind a CUDA device, found by its UUID.

        Raises:
            DeviceError: the driver's library cannot be used, or knows no such card.
        """
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        names = [f"{kind}-{uuid}" for kind in _KINDS] if not uuid.startswith(_KINDS) else [uuid]
        with _errors():
            pynvml.nvmlInit()
            for name in names[:-1]:
                with suppress(pynvml.NVMLError):
                    return cls(pynvml.nvmlDeviceGetHandleByUUID(name))
            return cls(pynvml.nvmlDeviceGetHandleByUUID(names[-1]))

    def own_bytes(self) -> int | None:
        """What this process holds on the card, its CUDA context included.

        None where the driver does not tell: in a container it counts processes by numbers of the host.
        """
        with _errors():
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)
        return next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)

    def busy_share(self) -> float | None:
        """The share of the last moments in which a kernel of any process ran on the card, 0 to 1.

        None for a part of a card (MIG), of which the driver does not tell.
        """
        with _errors():
            try:
                return float(pynvml.nvmlDeviceGetUtilizationRates(self.handle).gpu) / 100
            except pynvml.NVMLError_NotSupported:
                return None


def driver_version() -> str:
    """The version of NVIDIA's driver, such as "580.82.07".

    Raises:
        DeviceError: there is no driver, or its library cannot be used.
    """
    with _errors():
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError as error:
        raise DeviceError(f"NVIDIA's driver does not answer ({error}); check that nvidia-smi works here") from error
