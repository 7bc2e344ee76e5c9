"""Checkpoints in 8 bits for carrying: half the size of float16, unpacked into plain files before use.

A matrix or a convolution's weight becomes int8 with a scale for each of its first dimension's rows: the largest value
of a row is 127 steps. What is small or delicate stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

SCALE = ".scale"  # after a tensor's key, float32 [rows]
_STEPS = 127


def pack(tensors: Mapping[str, torch.Tensor], delicate: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Tensors as they are stored: int8 and scales; vectors, and what `delicate` says, unchanged.

    Args:
        tensors: by key, no key ending in ".scale".
        delicate: of a key, whether 8 bits are too few.
    """
    packed: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or sum(size > 1 for size in tensor.shape) < 2 or delicate(key):
            packed[key] = tensor
        else:
            rows = tensor.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / _STEPS
            packed[key] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
            packed[key + SCALE] = scale
    return packed


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `pack` was given, int8 and scales as float16 and the rest in its own type."""
    tensors = {}
    for key, tensor in packed.items():
        if key.endswith(SCALE):
            continue
        scale = packed.get(key + SCALE)
        if scale is not None:
            tensor = (tensor.float() * scale.view(-1, *[1] * (tensor.dim() - 1))).half()
        tensors[key] = tensor
    return tensors
