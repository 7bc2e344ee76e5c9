"""A directory for one of several families whose files lie together, or for one whose files lie apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from chatterbox_vllm.caches.disk import built_once, cache_directory
from chatterbox_vllm.checkpoint.config import CONFIG_FILE
from chatterbox_vllm.errors import OutputError
from chatterbox_vllm.families.family import Family


def linked_directory(folders: Sequence[Path], family: Family) -> Path:
    """Links to the family's files, each in the first of `folders` that has it, beside a `config.json` that names it.

    The links stand in the cache at a place of its own for each place and selection of files.

    Raises:
        OutputError: the cache cannot be written.
    """
    there = {
        name: folder.absolute() / name
        for folder in reversed(folders)
        for name in sorted(family.files)
        if (folder / name).exists()
    }
    places = [*(str(folder.resolve()) for folder in folders), *sorted(there)]
    digest = hashlib.blake2b("\n".join(places).encode(), digest_size=8).hexdigest()
    try:
        directory = cache_directory().absolute() / "models" / f"{family.name}-{digest}"
        built_once(directory, partial(_link, there, family))
    except OSError as error:
        raise OutputError(
            f"links to the {family.name} model's files cannot be made ({error}); set "
            "CHATTERBOX_VLLM_CACHE to a writable directory"
        ) from error
    return directory


def _link(files: Mapping[str, Path], family: Family, directory: Path) -> None:
    for name, file in files.items():
        (directory / name).symlink_to(file)
    (directory / CONFIG_FILE).write_text(family.config.to_json(), encoding="utf-8")
