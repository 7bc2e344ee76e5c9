"""Files that are named by the digest of what they hold, so that equal content is kept once.

Processes of several machines may share the directory. Nothing is locked: each step is one that file systems, NFS among
them, do whole or not at all. Who adds something writes the content first, then the record that points to it, then looks
whether the content is still there. Who removes content takes it aside first, then looks whether a record points to it
by now, and puts it back if so. Whatever the order, one of the two sees what the other has done.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from chatterbox_vllm.caches.atomic import partial_name, whole_file
from chatterbox_vllm.errors import CheckpointError, OutputError

DIGEST = r"[0-9a-f]{64}"
_FILE = re.compile(rf"({DIGEST})\.[a-z]+")
_ASIDE = re.compile(rf"\.(({DIGEST})\.[a-z]+)\.[0-9a-f]+\.aside")
# What a process leaves behind that was killed; no adding or removing takes so long.
_LEFT_BEHIND_SECONDS = 3600


def digest_of(data: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(data).hexdigest()


def promised_digest(path: Path) -> str | None:
    """The digest that a file's name promises; None for a file that is named otherwise."""
    found = _FILE.fullmatch(path.name)
    return found and found[1]


class Contents:
    """The contents in a directory, which is made when the first is put there."""

    def __init__(self, directory: Path):
        self.directory = directory

    def path(self, digest: str, suffix: str) -> Path:
        """The file of a content; it may not be there."""
        return self.directory / f"{digest}{suffix}"

    def put(self, data: bytes, suffix: str) -> Path:
        """Keep a content, unless it is there already, whole.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path(digest_of(data), suffix)
        try:
            if not _holds(path, data):
                self.directory.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as file:
                    file.write(data)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); make room") from error
        return path

    def read(self, path: Path) -> bytes:
        """A content, found to be what its name promises.

        Raises:
            CheckpointError: it is damaged, or not there.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); add the voice anew") from error
        if promised_digest(path) != digest_of(data):
            raise CheckpointError(f"{path}: its content is not the one that its name promises; add the voice anew")
        return data

    def restore(self, path: Path) -> bool:
        """Put back a content that somebody has taken aside; whether it is there now."""
        for aside in self.directory.glob(f".{path.name}.*.aside"):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(aside, path)
        return path.exists()

    def remove_unused(self, digests: Iterable[str], used: Callable[[], set[str]]) -> list[Path]:
        """Remove those contents that nothing points to.

        Args:
            used: the digests that all records point to at the moment.

        Returns:
            The files that are gone.

        Raises:
            OSError: a file cannot be removed.
        """
        unused = set(digests) - used()
        aside = [path for path in self._files() if promised_digest(path) in unused]
        taken = [(path, moved) for path in aside if (moved := _take_aside(path)) is not None]
        still_used = used() if taken else set()
        gone = []
        for path, moved in taken:
            if promised_digest(path) in still_used:
                self.restore(path)
            else:
                gone.append(path)
            moved.unlink(missing_ok=True)
        return gone

    def sweep(self, used: Callable[[], set[str]]) -> list[Path]:
        """Remove every content that nothing points to, and what killed processes have left behind.

        Returns:
            The files that are gone.

        Raises:
            OSError: a file cannot be removed.
        """
        if not self.directory.exists():
            return []
        left = left_behind(self.directory)
        for path in left:
            if (found := _ASIDE.fullmatch(path.name)) and found[2] in used():
                self.restore(self.directory / found[1])
            path.unlink(missing_ok=True)
        digests = [digest for path in self._files() if (digest := promised_digest(path))]
        return left + self.remove_unused(digests, used)

    def _files(self) -> list[Path]:
        return sorted(self.directory.iterdir()) if self.directory.exists() else []


def left_behind(directory: Path) -> list[Path]:
    """Unfinished files of processes that are long gone.

    Raises:
        OSError: nothing can be written there.
    """
    now = look_anew(directory)
    found = []
    for path in directory.iterdir():
        if path.name.startswith(".") and path.suffix in (".partial", ".aside"):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_ctime > _LEFT_BEHIND_SECONDS:
                    found.append(path)
    return found


def look_anew(directory: Path) -> float:
    """Let a client of a network file system read a directory anew: what it changes itself, it does not remember.

    Returns:
        The time by the clock of the file system.

    Raises:
        OSError: nothing can be written there.
    """
    probe = directory / partial_name()
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_ctime
    finally:
        probe.unlink(missing_ok=True)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def _take_aside(path: Path) -> Path | None:
    """Rename a content so that nobody begins to use it; None where somebody else was faster."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.aside")
    try:
        return path.rename(aside)
    except FileNotFoundError:
        return None
