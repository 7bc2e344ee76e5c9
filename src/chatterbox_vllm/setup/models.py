"""From what a user calls a model to a directory of its files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from chatterbox_vllm.checkpoint.hub import download
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.demo import demo_directory
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.registry import FAMILIES

DEMO = "demo"


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(model: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The directory that holds `model`, downloaded or built where needed.

    Args:
        model: a family's name ("english"), "demo", a directory, or a hub id ("owner/name").
        revision: commit, branch or tag of a hub id; a family's own pinned commit otherwise.

    Raises:
        ConfigError: no such name or directory.
        ModelUnavailableError: not in the cache and the hub cannot be reached.
    """
    name = os.fspath(model)
    if name == DEMO:
        return demo_directory()
    if name in FAMILIES:
        family = FAMILIES[name]
        return download(family.repository, revision or family.revision, family.files, family.optional_files)
    if name and Path(name).is_dir():
        return Path(name)
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        return download(name, revision, ENGLISH.files, ENGLISH.optional_files)
    known = ", ".join(repr(n) for n in (*FAMILIES, DEMO))
    raise ConfigError(f"model {name!r} is neither {known}, nor an existing directory, nor a hub id (owner/name)")
