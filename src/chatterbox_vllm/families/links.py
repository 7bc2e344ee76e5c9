"""A directory for one of several families whose files lie together."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from chatterbox_vllm.caches.disk import built_once, cache_directory
from chatterbox_vllm.checkpoint.config import CONFIG_FILE
from chatterbox_vllm.errors import OutputError
from chatterbox_vllm.families.family import Family


def linked_directory(files: Path, family: Family) -> Path:
    """Links to the family's files in a directory, beside a `config.json` that says which family they are.

    It stands in the cache at a place of its own for each place and selection of files.

    Raises:
        OutputError: the cache cannot be written.
    """
    there = [name for name in sorted(family.files) if (files / name).exists()]
    digest = hashlib.blake2b("\n".join([str(files.resolve()), *there]).encode(), digest_size=8).hexdigest()
    try:
        directory = cache_directory().absolute() / "models" / f"{family.name}-{digest}"
        built_once(directory, partial(_link, files.absolute(), there, family))
    except OSError as error:
        raise OutputError(
            f"the {family.name} model cannot be set apart from the others in {files} ({error}); set "
            "CHATTERBOX_VLLM_CACHE to a writable directory"
        ) from error
    return directory


def _link(files: Path, names: list[str], family: Family, directory: Path) -> None:
    for name in names:
        (directory / name).symlink_to(files / name)
    (directory / CONFIG_FILE).write_text(family.config.to_json(), encoding="utf-8")
