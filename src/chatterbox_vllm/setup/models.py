"""From what a user calls a model to a directory of its files, or to what can be known of it without them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chatterbox_vllm.checkpoint.config import CONFIG_FILE, ModelConfig
from chatterbox_vllm.checkpoint.files import Header, Weights
from chatterbox_vllm.checkpoint.hub import Repository
from chatterbox_vllm.checkpoint.reach import why_unreachable
from chatterbox_vllm.errors import CheckpointError, ConfigError, ModelUnavailableError
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.layout import checkpoint_shapes
from chatterbox_vllm.families.links import linked_directory
from chatterbox_vllm.families.registry import DEFAULT_FAMILY, FAMILIES, config_of, family_of
from chatterbox_vllm.families.small import small_directory
from chatterbox_vllm.quantization.config import COMPONENTS
from chatterbox_vllm.settings import MODEL_NAME

logger = logging.getLogger(__name__)

# The model that this package brings, its earlier name, and the model of tests, which babbles.
SMALL, DEMO, BABBLE = "small", "demo", "babble"
MADE_HERE = (SMALL, DEMO, BABBLE)
_DEVICE_NAMES = ("auto", "cpu", "cuda", "mps")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path:
    """The directory that holds `model`, downloaded or built where needed.

    Args:
        model: a family's name, "small" (or "demo"), "babble", a directory, or a hub id ("owner/name"); None is what
            CHATTERBOX_MODEL names, or else the default family.
        revision: commit, branch or tag of a hub id; a family's own pinned commit otherwise.

    Raises:
        ConfigError: no such name or directory, or a revision of what has none.
        ModelUnavailableError: not in the cache and the hub cannot be reached, or no room for it.
    """
    where = _locate(model, revision)
    return where if isinstance(where, Path) else _downloaded(where, _OnHub.download)


def resolve_converter(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path:
    """`resolve_model` for what works without T3: of a repository only S3Gen's file and the built-in voice are fetched.

    Raises:
        ConfigError, ModelUnavailableError: as `resolve_model`.
    """
    where = _locate(model, revision)
    return where if isinstance(where, Path) else _downloaded(where, _OnHub.download_s3gen)


def _downloaded(where: _OnHub, download: Callable[[_OnHub], Path]) -> Path:
    try:
        return download(where)
    except ModelUnavailableError:
        if (named := where.as_configured(ask=True)) is None:
            raise
        return download(named)


def model_and_device(model: str | os.PathLike[str] | None, device: str) -> tuple[str | os.PathLike[str] | None, str]:
    """Model and device, where the device may stand in the model's place, as in the published classes."""
    if isinstance(model, str) and model.partition(":")[0] in _DEVICE_NAMES:
        return None, model
    return model, device


def download_model(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path:
    """`resolve_model`, to fetch ahead: later starts need no network for a family or a pinned commit."""
    return resolve_model(model, revision)


def default_model() -> str:
    """The name of the model that a command takes where none was given.

    That is what CHATTERBOX_MODEL names, or else the default family. Where the family's files are neither in the cache
    nor to be had now, it is the small model, and a warning says so.
    """
    if named := MODEL_NAME.from_environment():
        return named
    family = DEFAULT_FAMILY
    if _published(family).is_cached() or (why := why_unreachable()) is None:
        return family.name
    logger.warning(
        "no model was named, and the published one (%s) is neither in the cache nor reachable (%s): using the small "
        "model that this package brings; with a network, `chatterbox-vllm download %s` fetches the published one",
        family.repository,
        why,
        family.name,
    )
    return SMALL


def local_directory(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path | None:
    """`resolve_model` without a download: None where the files are not on this machine.

    Raises:
        ConfigError: no such name or directory, or a revision of what has none.
    """
    where = _locate(model, revision)
    if isinstance(where, Path):
        return where
    if (found := where.on_this_machine()) is None and (named := where.as_configured(ask=False)) is not None:
        return named.on_this_machine()
    return found


@dataclass(frozen=True)
class ModelHeaders:
    """What can be known of a model without its tensors.

    Attributes:
        where: its directory, or its hub id.
        config: its dimensions, and what is quantized.
        files: by the part's name in `Family` ("t3", "s3gen", "voice_encoder"); of one on the hub only headers.
    """

    where: Path
    config: ModelConfig
    files: dict[str, Weights]

    @classmethod
    def of_directory(cls, directory: Path) -> ModelHeaders:
        """Of files on this machine.

        Raises:
            CheckpointError, ConfigError: they are not those of a model.
        """
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory of model files; give another one")
        config = config_of(directory)
        family = family_of(config.family, directory)
        return cls(directory, config, {part: Weights(directory / getattr(family, part)) for part in COMPONENTS})


def model_headers(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> ModelHeaders:
    """What can be known of `model` without downloading it: some hundred KiB of a hub's repository.

    Args:
        model, revision: as for `resolve_model`.

    Raises:
        ConfigError, CheckpointError, ModelUnavailableError
    """
    where = _locate(model, revision)
    if isinstance(where, Path):
        return ModelHeaders.of_directory(where)
    try:
        pinned = where.pinned()  # all that follows is of one commit
    except ModelUnavailableError as error:
        return ModelHeaders.of_directory(where.newest_cached(error))
    if (cached := pinned.certainly_here()) is not None:
        return ModelHeaders.of_directory(cached)
    path = pinned.repositories[0].small_file(CONFIG_FILE)
    config = where.family.config if path is None else ModelConfig.from_file(path)
    named = Path(pinned.repositories[0].name)
    family = family_of(config.family, named)
    if family is not pinned.family:
        pinned = pinned.taken_for(family)
    files = {part: getattr(family, part) for part in COMPONENTS}
    headers = pinned.headers(tuple(files.values()))
    for part, file in files.items():
        if file not in headers:  # a pickle, whose shapes the hub does not tell: those of the family
            shapes = checkpoint_shapes(config)[part]
            headers[file] = Header({key: (shape, "F32") for key, shape in shapes.items()}, {})
    return ModelHeaders(named, config, {part: Weights(named / file, headers[file]) for part, file in files.items()})


@dataclass(frozen=True)
class _OnHub:
    """A model of the hub.

    Attributes:
        repositories: its own, and one that holds what it borrows.
        family: that it is taken for without a `config.json`.
    """

    repositories: tuple[Repository, ...]
    family: Family

    def download(self) -> Path:
        """Its directory, downloaded where it is not in the cache."""
        return self._alone([repository.download() for repository in self.repositories])

    def download_s3gen(self) -> Path:
        """A directory of S3Gen's file and the built-in voice, likewise."""
        names = {self.family.s3gen, self.family.builtin_voice, CONFIG_FILE}
        some = (replace(each, files=tuple(f for f in each.files if f in names)) for each in self.repositories)
        return replace(self, repositories=tuple(each for each in some if self.family.s3gen in each.files)).download()

    def is_cached(self) -> bool:
        """Whether `download` needs no hub."""
        return all(repository.is_cached() for repository in self.repositories)

    def on_this_machine(self) -> Path | None:
        """Its directory, where the cache has files that may be the revision's."""
        return self._if_all(lambda each: each.cached() or next(each.complete_snapshots(), None))

    def certainly_here(self) -> Path | None:
        """Its directory, where the cache has the very commits."""
        return self._if_all(Repository.cached)

    def newest_cached(self, error: Exception) -> Path:
        """Its directory of the newest files in the cache, in place of what the hub would not give."""
        return self._alone([repository.newest_cached(error) for repository in self.repositories])

    def pinned(self) -> _OnHub:
        """The same at the commits that the revisions are now."""
        pinned = (replace(repository, revision=repository.commit()) for repository in self.repositories)
        return replace(self, repositories=tuple(pinned))

    def headers(self, files: Collection[str]) -> dict[str, Header]:
        """Of those files that are `.safetensors`, read from the hub."""
        found: dict[str, Header] = {}
        for repository in self.repositories:
            found |= repository.headers([f for f in files if f in repository.files and f.endswith(".safetensors")])
        return found

    def as_configured(self, ask: bool) -> _OnHub | None:
        """The same, taken for another family, which its `config.json` names; None where none does.

        Args:
            ask: the hub, where the cache has no such file.
        """
        own = self.repositories[0]
        path = own.cached_file(CONFIG_FILE)
        if path is None and ask:
            try:
                path = own.small_file(CONFIG_FILE)
            except ModelUnavailableError:
                return None
        family = self.family if path is None else family_of(ModelConfig.from_file(path).family, Path(own.name))
        return None if family is self.family else self.taken_for(family)

    def taken_for(self, family: Family) -> _OnHub:
        """Its own repository, which then holds all files."""
        own = self.repositories[0]
        return _repository(own.name, own.revision, replace(family, borrowed=None))

    def _if_all(self, find: Callable[[Repository], Path | None]) -> Path | None:
        folders = [folder for folder in map(find, self.repositories) if folder is not None]
        return self._alone(folders) if len(folders) == len(self.repositories) else None

    def _alone(self, folders: Sequence[Path]) -> Path:
        """The one repository's directory, or else one of links: several families share a repository, and no file in it
        says which of them is meant; or a family's files lie in two.

        Raises:
            OutputError: the links cannot be written.
        """
        own = folders[0]
        if len(folders) == 1 and (
            (own / CONFIG_FILE).exists() or family_of(config_of(own).family).name == self.family.name
        ):
            return own
        return linked_directory(folders, self.family)


def _locate(model: str | os.PathLike[str] | None, revision: str | None) -> Path | _OnHub:
    """The directory of a model on this machine, or the hub's repository that holds it."""
    name = (MODEL_NAME.from_environment() or DEFAULT_FAMILY.name) if model is None else os.fspath(model)
    if name in FAMILIES:
        return _published(FAMILIES[name], revision)
    if name and (name in MADE_HERE or Path(name).is_dir()):
        if revision is not None:
            raise ConfigError(f"model {name!r} has no revisions: leave revision={revision!r} out, or give a hub id")
        return _made_here(name) if name in MADE_HERE else Path(name)
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/")):
        # Taken for the family whose repository it is, or else for the default, as a directory without config.json is.
        family = next((family for family in FAMILIES.values() if family.repository == name), DEFAULT_FAMILY)
        return _repository(name, revision, family)
    known = ", ".join(repr(n) for n in (*FAMILIES, SMALL))
    raise ConfigError(f"model {name!r} is neither {known}, nor an existing directory, nor a hub id (owner/name)")


def _made_here(name: str) -> Path:
    if name != BABBLE:
        return small_directory()
    from chatterbox_vllm.families.babble import babble_directory  # brings nets that a command may not need

    return babble_directory()


def _published(family: Family, revision: str | None = None) -> _OnHub:
    return _repository(family.repository, revision or family.revision, family)


def _repository(name: str, revision: str | None, family: Family) -> _OnHub:
    optional = (*family.optional_files, CONFIG_FILE)
    own = Repository(name, revision, (*family.own_files, CONFIG_FILE), optional)
    if (borrowed := family.borrowed) is None:
        return _OnHub((own,), family)
    return _OnHub((own, Repository(borrowed.repository, borrowed.revision, borrowed.files, optional)), family)
