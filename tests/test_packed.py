"""Packed models: what comes out of the parts, and parts that are damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from chatterbox_vllm.checkpoint.packed import pack, read_packed
from chatterbox_vllm.errors import CheckpointError

FILES = {"config.json": b"{}", "voices/ada.pt": b"a voice"}


def write_parts(directory: Path, files: dict[str, bytes], size: int = 500) -> list[Path]:
    """A packed model of these files, in parts of `size` bytes."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    data = archive.getvalue()
    directory.mkdir()
    parts = []
    for number, begin in enumerate(range(0, len(data), size)):
        parts.append(directory / f"part.{number:03}")
        parts[-1].write_bytes(data[begin : begin + size])
    return parts


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def parts(tmp_path: Path, weights: torch.Tensor) -> list[Path]:
    packed = save(pack({"a.weight": weights}, lambda key: False))
    parts = write_parts(tmp_path / "packed", FILES | {"t3.safetensors": packed})
    assert len(parts) > 2
    return parts


def test_files_come_out_in_half_precision(parts: list[Path], weights: torch.Tensor, tmp_path: Path) -> None:
    read_packed(tmp_path / "packed", tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    tensors = load_file(tmp_path / "out" / "t3.safetensors")
    assert tensors.keys() == {"a.weight"} and tensors["a.weight"].dtype == torch.float16
    assert (tensors["a.weight"].float() - weights).norm() < 0.01 * weights.norm()
    assert (tmp_path / "out" / "t3.safetensors").stat().st_mode & 0o044  # others may read it


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda parts: parts[-1].unlink(),
        lambda parts: parts[0].unlink(),
        lambda parts: [part.unlink() for part in parts],
        lambda parts: parts[-1].write_bytes(parts[-1].read_bytes()[:-100]),
        lambda parts: parts[1].write_bytes(b""),
        lambda parts: flip(parts[1]),
        lambda parts: flip(parts[-1]),
        lambda parts: parts[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    ],
    ids=["no last", "no first", "none", "cut", "empty", "a bit", "a bit at the end", "a pointer in its place"],
)
def test_damaged_parts_are_refused_with_the_remedy(damage, parts: list[Path], tmp_path: Path) -> None:
    damage(parts)
    with pytest.raises(CheckpointError, match=r"packed: the packed model is damaged \(.+\); install this package anew"):
        read_packed(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "voices/../../outside"])
def test_nothing_is_written_outside(name: str, tmp_path: Path) -> None:
    write_parts(tmp_path / "packed", {name: b"x"})
    with pytest.raises(CheckpointError, match="outside.* is no file of a model"):
        read_packed(tmp_path / "packed", tmp_path / "out")


def test_links_and_other_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("config.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    (tmp_path / "packed" / "part.000").write_bytes(gzip.compress(archive.getvalue()))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_packed(tmp_path / "packed", tmp_path / "out")
