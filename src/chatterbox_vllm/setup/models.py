"""From what a user calls a model to a directory of its files, or to what can be known of it without them."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from chatterbox_vllm.checkpoint.config import CONFIG_FILE, ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.checkpoint.hub import Repository
from chatterbox_vllm.checkpoint.reach import why_unreachable
from chatterbox_vllm.errors import CheckpointError, ConfigError, ModelUnavailableError
from chatterbox_vllm.families.family import Family
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
    return where.family_alone(where.repository.download()) if isinstance(where, _OnHub) else where


def resolve_converter(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> Path:
    """`resolve_model` for what works without T3: of a repository only S3Gen's file and the built-in voice are fetched.

    Raises:
        ConfigError, ModelUnavailableError: as `resolve_model`.
    """
    where = _locate(model, revision)
    if isinstance(where, Path):
        return where
    files = (where.family.s3gen, where.family.builtin_voice, CONFIG_FILE)
    return where.family_alone(replace(where.repository, files=files).download())


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
    if _published(family).repository.is_cached() or (why := why_unreachable()) is None:
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
    found = where.repository.cached() or next(where.repository.complete_snapshots(), None)
    return None if found is None else where.family_alone(found)


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
    repository = where.repository
    try:
        pinned = replace(repository, revision=repository.commit())  # all that follows is of one commit
    except ModelUnavailableError as error:
        return ModelHeaders.of_directory(where.family_alone(repository.newest_cached(error)))
    if (cached := pinned.cached()) is not None:
        return ModelHeaders.of_directory(where.family_alone(cached))
    path = pinned.small_file(CONFIG_FILE)
    config = where.family.config if path is None else ModelConfig.from_file(path)
    named = Path(repository.name)
    family = family_of(config.family, named)
    files = {part: getattr(family, part) for part in COMPONENTS}
    headers = pinned.headers(tuple(files.values()))
    return ModelHeaders(named, config, {part: Weights(named / file, headers[file]) for part, file in files.items()})


@dataclass(frozen=True)
class _OnHub:
    """A model of the hub: the repository that holds it, and the family that it is taken for without a `config.json`."""

    repository: Repository
    family: Family

    def family_alone(self, snapshot: Path) -> Path:
        """The repository's directory, or where that is taken for another family's, one of links into it.

        Several families share a repository, and no file in it says which of them is meant.

        Raises:
            OutputError: the links cannot be written.
        """
        if (snapshot / CONFIG_FILE).exists() or family_of(config_of(snapshot).family) is self.family:
            return snapshot
        return linked_directory(snapshot, self.family)


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
        # Taken for one of the published family's, as a directory without config.json is.
        return _repository(name, revision, DEFAULT_FAMILY)
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
    files, optional = (*family.files, CONFIG_FILE), (*family.optional_files, CONFIG_FILE)
    return _OnHub(Repository(name, revision, files, optional), family)
