"""Tensors that come from outside: what they must be before a model computes with them, and a key of their contents."""

from __future__ import annotations

import hashlib
from typing import TypeGuard

import torch

from chatterbox_vllm.errors import ConfigError


def content_key(**tensors: torch.Tensor) -> str:
    """A hash of names, dtypes, shapes and values of tensors on the CPU: equal for equal contents."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        array = tensor.contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def require_floats(name: str, value: object, shape: tuple[int, ...], most: float) -> None:
    """Demand a float32 tensor of that shape on the CPU, all values within -most..most.

    Raises:
        ConfigError: it is something else; the message says what.
    """
    if not _is_plain(value, torch.float32):
        raise ConfigError(f"{name} is {_described(value)}, not a float32 tensor on the CPU")
    if tuple(value.shape) != shape:
        raise ConfigError(f"{name} has shape {list(value.shape)}, the model needs {list(shape)}")
    largest = float(value.abs().max())
    if not largest <= most:  # true for NaN, too
        raise ConfigError(f"{name} holds {largest:g}, the model needs finite values from -{most:g} to {most:g}")


def require_ids(name: str, value: object, vocabulary: int, longest: int) -> None:
    """Demand an int64 tensor [n] on the CPU, 1 <= n <= longest, of speech tokens in 0..vocabulary - 1.

    Raises:
        ConfigError: it is something else; the message says what.
    """
    if not _is_plain(value, torch.int64):
        raise ConfigError(f"{name} is {_described(value)}, not an int64 tensor on the CPU")
    if value.dim() != 1 or not 1 <= len(value) <= longest:
        raise ConfigError(f"{name} has shape {list(value.shape)}, the model needs [n] with n from 1 to {longest}")
    lowest, highest = (int(end) for end in value.aminmax())
    if lowest < 0 or highest >= vocabulary:
        outside = lowest if lowest < 0 else highest
        raise ConfigError(f"{name} holds {outside}, the model's speech tokens are 0..{vocabulary - 1}")


def _is_plain(value: object, dtype: torch.dtype) -> TypeGuard[torch.Tensor]:
    return (
        issubclass(type(value), torch.Tensor)
        and isinstance(value, torch.Tensor)
        and value.dtype == dtype
        and value.device.type == "cpu"
        and value.layout == torch.strided
    )


def _described(value: object) -> str:
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
