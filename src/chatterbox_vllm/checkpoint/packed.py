"""Checkpoints in 8 bits for carrying: half the size of float16, unpacked into plain files before use.

A matrix or a convolution's weight becomes int8 with a scale for each of its first dimension's rows: the largest value
of a row is 127 steps. What is small or delicate stays as it is. The files of a model together are one `.tar.gz`, cut
into parts `part.000`, `part.001` and so on.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from chatterbox_vllm.errors import CheckpointError

PARTS = "part.*"
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


def read_packed(packed: Path, out: Path) -> None:
    """Make the files of a model in the directory `out` of the parts in the directory `packed`.

    Raises:
        CheckpointError: parts are missing or damaged.
        OSError: the files cannot be written.
    """
    try:
        files = _files(b"".join(part.read_bytes() for part in sorted(packed.glob(PARTS))))
    except (EOFError, OSError, SafetensorError, ValueError, tarfile.TarError, zlib.error) as error:
        raise CheckpointError(
            f"{packed}: the packed model is damaged ({error}); install this package anew, or pack the model again"
        ) from error
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _files(archive: bytes) -> dict[PurePosixPath, bytes]:
    """The files of an archive, unpacked; raises what the libraries raise for one that is damaged."""
    files: dict[PurePosixPath, bytes] = {}
    # All at once, since that compares the checksum at the archive's end.
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive)), mode="r:") as tar:
        for entry in tar:
            name, content = PurePosixPath(entry.name), tar.extractfile(entry) if entry.isfile() else None
            if content is None or name.is_absolute() or ".." in name.parts:
                raise ValueError(f"{entry.name!r} is no file of a model")
            data = content.read()
            files[name] = save(unpack(load(data))) if name.suffix == ".safetensors" else data
    if not files:
        raise ValueError("it holds no files")
    return files
