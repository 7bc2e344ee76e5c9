"""What NVIDIA's driver says of itself, by its management library (NVML)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from chatterbox_vllm.errors import DeviceError


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
