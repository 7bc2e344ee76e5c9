"""What the contents of a quantized file are known by: a SHA-256 over its tensors, in memory or on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

import torch

# The safetensors format's names of dtypes.
DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_BLOCK = 1 << 20


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and contents of CPU tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(_title(name, tensor.dtype, tensor.shape))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_fingerprint(path: Path) -> str:
    """`fingerprint` of the tensors of a whole `.safetensors` file, read once, a block at a time.

    Raises:
        OSError: it cannot be read to its end.
    """
    digest = hashlib.sha256()
    # Not through a memory map: what is read so never counts as this process's memory.
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in sorted(header.keys() - {"__metadata__"}):
            entry = header[name]
            digest.update(_title(name, _DTYPES.get(entry["dtype"]), entry["shape"]))
            begin, end = entry["data_offsets"]
            for block in _blocks(file, 8 + length + begin, end - begin):
                digest.update(block)
    return digest.hexdigest()


def _title(name: str, dtype: torch.dtype | None, shape: Sequence[int]) -> bytes:
    return f"{name} {dtype} {tuple(shape)}\n".encode()


def _blocks(file: FileIO, start: int, size: int) -> Iterator[memoryview]:
    """`size` bytes of a file from `start`, in blocks that are good until the next."""
    buffer = memoryview(bytearray(min(size, _BLOCK)))
    file.seek(start)
    while size:
        read = file.readinto(buffer[: min(size, _BLOCK)])
        if not read:
            raise OSError("it ends too early")
        size -= read
        yield buffer[:read]
