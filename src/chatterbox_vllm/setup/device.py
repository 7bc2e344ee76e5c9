"""Which device a model runs on."""

from __future__ import annotations

import torch

from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.t3.vllm.environment import INSTALL, vllm_device_type


def resolve_device(device: str) -> torch.device:
    """The device for `device`: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: not such a name.
        DeviceError: the device is not there, or the installed vLLM is built for another.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise ConfigError(f'device must be "auto", "cpu", "cuda" or "cuda:N", not {device!r}')
    built_for = vllm_device_type()
    if kind == "auto":
        kind = built_for
    if kind != built_for:
        raise DeviceError(
            f"device {device!r} was asked for, but the installed vLLM is built for {built_for}; {INSTALL}"
        )
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(f"device {device!r} was asked for, but PyTorch finds no CUDA device; check the driver")
    number = int(index) if index else torch.cuda.current_device()
    if number >= torch.cuda.device_count():
        raise DeviceError(
            f"device {device!r} was asked for, but there are only {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", number)
