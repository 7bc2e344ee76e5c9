"""Files of a hub repository: whole snapshots of one commit, from the cache or downloaded; headers without files."""

from __future__ import annotations

import logging
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from chatterbox_vllm.checkpoint.files import Header
from chatterbox_vllm.errors import CheckpointError, ModelUnavailableError

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MIB = 1 << 20


@dataclass(frozen=True)
class Repository:
    """The files that a model needs of a hub repository.

    Attributes:
        name: "owner/name".
        revision: commit, branch or tag; None is the newest of the main branch, and where the hub cannot be reached the
            newest complete snapshot in the cache.
        files: names of the files.
        optional: those of `files` that a repository need not hold.
    """

    name: str
    revision: str | None
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def download(self) -> Path:
        """The directory of the files, all of one commit; nothing is asked of the hub where a commit is in the cache.

        A download that was cut off is resumed. Progress is shown on a terminal.

        Raises:
            ModelUnavailableError: the files are neither in the cache nor to be had, or the disk has no room for them.
        """
        from huggingface_hub import snapshot_download

        if (cached := self.cached()) is not None:
            return cached
        try:
            commit = self._check_remote()
            bar = _progress(shown=True)
            return Path(snapshot_download(self.name, revision=commit, allow_patterns=list(self.files), tqdm_class=bar))
        except _hub_errors() as error:
            return self.newest_cached(error)

    def cached(self) -> Path | None:
        """The directory in the cache, where the revision is a commit and all its files are certain to be there."""
        if self.revision is None or not _COMMIT.fullmatch(self.revision):
            return None  # a branch or a tag may have moved
        folder = self._snapshots / self.revision
        return folder if not self._lacking(folder, certain=True) else None

    def is_cached(self) -> bool:
        """Whether `download` needs no hub: a complete snapshot is in the cache."""
        return self.cached() is not None or next(self.complete_snapshots(), None) is not None

    def complete_snapshots(self) -> Iterator[Path]:
        """Directories in the cache that may stand for the revision and lack nothing, the newest first."""
        return (folder for folder in self._candidates() if not self._lacking(folder))

    def headers(self, files: Sequence[str]) -> dict[str, Header]:
        """The headers of `.safetensors` files on the hub, read by ranged requests; a file's data stays there.

        Raises:
            ModelUnavailableError: the hub cannot be reached or lacks a file.
            CheckpointError: a file is no `.safetensors` file.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        try:
            require_hub()
            found = {
                file: HfApi().parse_safetensors_file_metadata(self.name, file, revision=self.revision) for file in files
            }
        except SafetensorsParsingError as error:
            raise CheckpointError(f"{self.name}: {first_line(error)}; is it a Chatterbox model?") from error
        except _hub_errors() as error:
            raise self._unavailable(error) from error
        return {
            file: Header(
                {key: (tuple(tensor.shape), str(tensor.dtype)) for key, tensor in header.tensors.items()},
                dict(header.metadata),
            )
            for file, header in found.items()
        }

    def small_file(self, file: str) -> Path | None:
        """A small optional file, downloaded by itself; None where the repository has none.

        Raises:
            ModelUnavailableError: the hub cannot be reached.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        try:
            require_hub()
            return Path(hf_hub_download(self.name, file, revision=self.revision))
        except RemoteEntryNotFoundError:
            return None
        except _hub_errors() as error:
            raise self._unavailable(error) from error

    def cached_file(self, file: str) -> Path | None:
        """A file of the newest snapshot in the cache that may stand for the revision and has it."""
        return next((folder / file for folder in self._candidates() if (folder / file).exists()), None)

    def commit(self) -> str:
        """The commit that the revision is now.

        Raises:
            ModelUnavailableError: the hub cannot be reached, or has no such revision.
        """
        from huggingface_hub import HfApi

        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            require_hub()
            return str(HfApi().model_info(self.name, revision=self.revision).sha)
        except _hub_errors() as error:
            raise self._unavailable(error) from error

    def _check_remote(self) -> str:
        """Check what the hub lists and whether the disk has room for it; returns the commit.

        Raises:
            ModelUnavailableError: a file is absent there, or there is no room.
        """
        from huggingface_hub import constants, snapshot_download

        require_hub()
        listed = snapshot_download(
            self.name,
            revision=self.revision,
            allow_patterns=list(self.files),
            dry_run=True,
            tqdm_class=_progress(shown=False),
        )
        names = {file.filename for file in listed}
        for file in self.files:
            if file not in names and file not in self.optional:
                raise ModelUnavailableError(f"{self.name} holds no {file}; is it a Chatterbox model?")
        begun = sum(part.stat().st_size for part in self._folder.glob("blobs/*.incomplete"))
        needed = sum(file.file_size or 0 for file in listed if file.will_download) - begun
        free = _free_bytes(Path(constants.HF_HUB_CACHE))
        if needed > free:
            raise ModelUnavailableError(
                f"{self.name} needs {needed / _MIB:.0f} MiB more in {constants.HF_HUB_CACHE}, where {free / _MIB:.0f} "
                "MiB are free: make room there, or set HF_HOME to a directory on another disk"
            )
        return str(listed[0].commit_hash)

    @property
    def _folder(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type="model")

    @property
    def _snapshots(self) -> Path:
        return self._folder / "snapshots"

    def _lacking(self, folder: Path, certain: bool = False) -> list[str]:
        """Files that a snapshot in the cache lacks.

        Args:
            certain: count an optional file, too, that the commit may hold for all that the cache knows.
        """
        from huggingface_hub import get_cached_repo_tree, try_to_load_from_cache
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        absent = [file for file in self.files if not (folder / file).exists()]
        try:
            listed = {file.path for file in get_cached_repo_tree(self.name, revision=folder.name)}
            return [file for file in absent if file in listed or file not in self.optional]
        except CachedRepoTreeNotFoundError:  # files of the commit were downloaded one by one
            known_absent = {
                file
                for file in absent
                if file in self.optional
                and (not certain or try_to_load_from_cache(self.name, file, revision=folder.name) is not None)
            }
            return [file for file in absent if file not in known_absent]

    def _candidates(self) -> Iterator[Path]:
        """Snapshots in the cache that may stand for the revision, the newest first."""
        if self.revision is None:
            folders = [folder for folder in self._snapshots.glob("*") if folder.is_dir()]
            yield from sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
            return
        reference = self._folder / "refs" / self.revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else self.revision
        if (self._snapshots / commit).is_dir():
            yield self._snapshots / commit

    def newest_cached(self, error: Exception) -> Path:
        """The newest complete snapshot in the cache, in place of what the hub would not give.

        Args:
            error: what came of asking the hub, for the log.

        Raises:
            ModelUnavailableError: there is none.
        """
        incomplete = []
        for folder in self._candidates():
            lacking = self._lacking(folder)
            if not lacking:
                logger.warning(
                    "%s: the hub gave nothing (%s); taking commit %s from the cache",
                    self.name,
                    first_line(_cause(error)),
                    folder.name,
                )
                return folder
            incomplete.append(f"commit {folder.name[:12]} lacks {', '.join(lacking)}")
        raise self._unavailable(error, f"; in the cache {'; '.join(incomplete)}" if incomplete else "") from error

    def _unavailable(self, error: Exception, beside: str = "") -> ModelUnavailableError:
        from huggingface_hub import constants
        from huggingface_hub.errors import (
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        cause = _cause(error)
        if isinstance(cause, RevisionNotFoundError):
            return ModelUnavailableError(f"{self.name} has no revision {self.revision!r}; give one that it has")
        if isinstance(cause, GatedRepoError):
            return ModelUnavailableError(
                f"{self.name} is given to those only who agreed to its conditions: agree on its page at "
                f"{constants.ENDPOINT}/{self.name}, then set HF_TOKEN to a token of that account"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return ModelUnavailableError(
                f"the hub has no repository {self.name}, or shows it to its owners only; check the name, or set "
                "HF_TOKEN to a token of an account that may read it"
            )
        return ModelUnavailableError(
            f"{self.name} cannot be downloaded ({first_line(cause)}){beside or ' and is not in the cache'}. Three "
            f"ways out: give a directory that holds the files ({', '.join(self.files)}); set HF_HOME to a cache that "
            "holds them; or take the small model that this package brings, model='small'"
        )


def _hub_errors() -> tuple[type[Exception], ...]:
    """What the library and the network raise."""
    from huggingface_hub import errors

    http_error = errors.HTTPError  # type: ignore[attr-defined]  # of the client that the library uses
    return (OSError, http_error, errors.EntryNotFoundError, errors.XetDownloadError)


def _progress(shown: bool) -> type[Any]:
    """The library's progress bar, on a terminal only (tqdm's `disable=None`), or none at all."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": None if shown else True})

    return Bar


def require_hub() -> None:
    """Fail at once where the hub may not be asked or its name does not resolve; the library tries for half a minute.

    Raises:
        OSError
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set in the environment")
    host = urlsplit(constants.ENDPOINT).hostname
    if host and not getproxies():
        socket.getaddrinfo(host, None)


def _free_bytes(directory: Path) -> int:
    """Free bytes on the disk of a directory, which need not be there yet."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _cause(error: Exception) -> BaseException:
    """What the hub or the network said, which lies under an error of the library's listing or of ours."""
    from huggingface_hub.errors import HfHubHTTPError

    return error if isinstance(error, HfHubHTTPError) else error.__cause__ or error


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
