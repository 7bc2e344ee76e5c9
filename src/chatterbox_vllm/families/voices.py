"""The voices that come with a model."""

from __future__ import annotations

from pathlib import Path

from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.voices.naming import SUFFIX, is_voice_name, named_alike

# Of a model's directory, where it has more voices than one.
VOICES = "voices"
# What the voice is called that speaks where none is named.
BUILTIN = "builtin"


def voices_of(directory: Path) -> dict[str, Path]:
    """The files of a model's own voices by name: its built-in one first, then those in its directory `voices`.

    Raises:
        ConfigError: the model's configuration cannot be read.
        CheckpointError: the directory `voices` cannot be read.
    """
    family = family_of(config_of(directory).family, directory)
    builtin, others = directory / family.builtin_voice, directory / VOICES
    try:
        paths = sorted(others.iterdir()) if others.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{others}: cannot be read ({error.strerror}); give yourself access to it") from error
    named = {path.stem: path for path in paths if path.suffix == SUFFIX and is_voice_name(path.stem)}
    return ({BUILTIN: builtin} if builtin.exists() else {}) | named


def voice_of_model(directory: Path, name: str) -> Path:
    """The file of one of them.

    Raises:
        ConfigError: there is none of that name.
    """
    own = voices_of(directory)
    if name not in own:
        raise ConfigError(
            f"the model in {directory} has no voice {name!r}; give the name of one{named_alike(name, own)}"
        )
    return own[name]
