"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")


def partial_name() -> str:
    """A new name for an unfinished file."""
    return f".{secrets.token_hex(8)}.partial"


def is_partial(name: str) -> bool:
    """Whether `name` is one of `partial_name`: where no process is writing, one that was killed has left the file."""
    return _PARTIAL.fullmatch(name) is not None


@contextlib.contextmanager
def whole_file(path: Path, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` where the block ends well and is removed where it does not.

    The bytes go to a `.partial` file in the same directory and are synced to the disk before they take the name. An
    earlier file of that name stays until that moment.

    Args:
        overwrite: whether an earlier file is replaced; where not, its presence is a `FileExistsError`.

    Raises:
        OSError: the file cannot be written.
    """
    partial = path.with_name(partial_name())
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            partial.replace(path)
        else:
            _link(partial, path)
            partial.unlink()
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _link(partial: Path, path: Path) -> None:
    """Give a file its second name, unless another file has it."""
    try:
        os.link(partial, path)
    except FileExistsError:
        # Where the answer of a network file system got lost, its client asks again and finds its own work.
        if partial.stat().st_nlink != 2:
            raise
