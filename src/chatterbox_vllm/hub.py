"""From what a user calls a model to a directory of its files."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from chatterbox_vllm.demo import demo_directory
from chatterbox_vllm.errors import ConfigError, ModelUnavailableError
from chatterbox_vllm.families import ENGLISH, FAMILIES, Family

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
        return _download(family, family.repository, revision or family.revision)
    if name and Path(name).is_dir():
        return Path(name)
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        return _download(ENGLISH, name, revision)
    known = ", ".join(repr(n) for n in (*FAMILIES, DEMO))
    raise ConfigError(f"model {name!r} is neither {known}, nor an existing directory, nor a hub id (owner/name)")


def _download(family: Family, repository: str, revision: str | None) -> Path:
    """All files of `family` from a hub repository, resumed where a download was cut off, progress on the terminal."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
    )

    paths = []
    for file in family.files:
        try:
            path = _cached(repository, file, revision)
            if path is None:
                _require_hub()
                path = hf_hub_download(repository, file, revision=revision)
            paths.append(path)
        except RemoteEntryNotFoundError as error:
            if file != family.builtin_voice:
                raise ModelUnavailableError(f"{repository} holds no {file}; is it a Chatterbox model?") from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            raise ModelUnavailableError(
                f"{file} of {repository} is not in the cache and cannot be downloaded "
                f"({_first_line(error)}). Three ways out: give a directory that holds the files "
                f"({', '.join(family.files)}); set HF_HOME to a cache that holds them; "
                f"or try the offline demo, model {DEMO!r} (it babbles)"
            ) from error
    return Path(paths[0]).parent


def _cached(repository: str, file: str, revision: str | None) -> str | None:
    """The file in the local cache; only a full commit hash says that it is the right one without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        return None
    found = try_to_load_from_cache(repository, file, revision=revision)
    return found if isinstance(found, str) else None


def _require_hub() -> None:
    """Fail at once where the hub's name does not resolve; the library would try for half a minute."""
    from huggingface_hub import constants

    host = urlsplit(constants.ENDPOINT).hostname
    if host and not constants.HF_HUB_OFFLINE and not getproxies():
        socket.getaddrinfo(host, None)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
