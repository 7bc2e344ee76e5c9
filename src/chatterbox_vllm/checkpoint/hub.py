"""Files of a hub repository, from the local cache or downloaded."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from chatterbox_vllm.errors import ModelUnavailableError


def download(repository: str, revision: str | None, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """The directory of `files` from a hub repository, resumed where a download was cut off, progress on the terminal.

    Args:
        optional: those of `files` that a repository need not hold.

    Raises:
        ModelUnavailableError: a file is neither in the cache nor to be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
    )

    paths = []
    for file in files:
        try:
            path = _cached(repository, file, revision)
            if path is None:
                _require_hub()
                path = hf_hub_download(repository, file, revision=revision)
            paths.append(path)
        except RemoteEntryNotFoundError as error:
            if file not in optional:
                raise ModelUnavailableError(f"{repository} holds no {file}; is it a Chatterbox model?") from error
        except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            raise ModelUnavailableError(
                f"{file} of {repository} is not in the cache and cannot be downloaded "
                f"({_first_line(error)}). Three ways out: give a directory that holds the files "
                f"({', '.join(files)}); set HF_HOME to a cache that holds them; "
                f"or try the offline demo, model 'demo' (it babbles)"
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
