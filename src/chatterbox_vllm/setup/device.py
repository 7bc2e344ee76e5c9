"""Which device a model runs on, and whether its card and driver can run it."""

from __future__ import annotations

import torch

from chatterbox_vllm.cuda.driver import driver_version
from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.t3.vllm.environment import INSTALL, vllm_device_type

# The oldest driver for each major version of CUDA (NVIDIA's CUDA Compatibility guide): PyTorch 2.13, which vLLM 0.32
# pins, is built for CUDA 13.
LEAST_DRIVER = {"12": 525, "13": 580}
# Turing: CUDA 13 compiles for nothing older, and vLLM's attention runs on nothing older.
LEAST_CAPABILITY = (7, 5)


def resolve_device(device: str, for_vllm: bool = True) -> torch.device:
    """The device for `device`: "auto", "cpu", "cuda" or "cuda:N".

    Args:
        for_vllm: whether vLLM is to run there; without, it is not imported, and PyTorch alone decides.

    Raises:
        ConfigError: not such a name.
        DeviceError: the device is not there, or the installed vLLM is built for another.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise ConfigError(f'device must be "auto", "cpu", "cuda" or "cuda:N", not {device!r}')
    built_for = vllm_device_type() if for_vllm else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "auto":
        kind = built_for
    if for_vllm and kind != built_for:
        raise DeviceError(
            f"device {device!r} was asked for, but the installed vLLM is built for {built_for}; {INSTALL}"
        )
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {device!r} was asked for, but PyTorch finds no CUDA device: {why_no_cuda()}")
    number = int(index) if index else torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device!r} was asked for, but there are only {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", number)


def why_no_cuda() -> str:
    """Why PyTorch finds no CUDA device here, as far as the driver tells, and what to do."""
    cuda = torch.version.cuda or "13"
    least = LEAST_DRIVER.get(cuda.partition(".")[0])
    try:
        version = driver_version()
    except DeviceError as error:
        return str(error)
    if least is not None and int(version.partition(".")[0]) < least:
        return f"its driver is {version}, and CUDA {cuda} needs {least} or newer; update the driver"
    return f"its driver, {version}, is new enough; check CUDA_VISIBLE_DEVICES, and the container's access to the card"


def check_card(device: torch.device) -> None:
    """Refuse a card that is too old; nothing is checked of a CPU.

    Raises:
        DeviceError
    """
    if device.type != "cuda":
        return
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        raise DeviceError(
            f"{torch.cuda.get_device_name(device)} has compute capability {found[0]}.{found[1]}; this needs "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (Turing: RTX 20, GTX 16, T4) or newer; use device='cpu' with "
            "vLLM's build for the CPU"
        )
