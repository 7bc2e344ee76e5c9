"""Where this package keeps what it builds, and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from chatterbox_vllm.settings import CACHE_DIRECTORY


def cache_directory() -> Path:
    """CHATTERBOX_VLLM_CACHE, or this package's place in the user's cache.

    Raises:
        OSError: the user has no home directory.
    """
    if own := CACHE_DIRECTORY.from_environment():
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatterbox-vllm"
    except RuntimeError as error:
        raise OSError(f"there is no cache directory: {error}") from error


@contextlib.contextmanager
def appearing_whole(directory: Path) -> Iterator[Path]:
    """A directory to fill, which becomes `directory` where the block ends well and is removed where it does not.

    Raises:
        OSError: nothing can be written there, or something is there already.
    """
    partial = Path(tempfile.mkdtemp(prefix=f"{directory.name}.partial-", dir=directory.absolute().parent))
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def built_once(directory: Path, build: Callable[[Path], None]) -> None:
    """Make `directory` where it is not there yet; another process may be making the same.

    Args:
        build: fills the empty directory that it is given.

    Raises:
        OSError: it cannot be written.
    """
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        with appearing_whole(directory) as partial:
            build(partial)
    except OSError:
        if not directory.is_dir():  # else the other was faster, which serves as well
            raise
