"""Voices by name: saved voices in one directory."""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path

from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.voices.records import Records, VoiceRecord, check_label
from chatterbox_vllm.voices.voice import Voice

SUFFIX = ".pt"
_ALIASES = "aliases.json"
_LONGEST_NAME = 64
_MOST_TOLD = 10


@dataclass(frozen=True)
class NamedVoice:
    """A voice of the library.

    Attributes:
        bytes: of its file.
        saved: when it was written.
    """

    name: str
    path: Path
    bytes: int
    saved: datetime


class VoiceLibrary:
    """The saved voices of a directory, one file each; it is made when the first voice is saved.

    Files are written whole or not at all, so that processes may share the directory.

    Args:
        directory: None is what CHATTERBOX_VOICES names, or else `chatterbox-vllm/voices` in the user's data directory.

    Raises:
        ConfigError: the user has no home directory, and nothing else is named.
    """

    def __init__(self, directory: Path | None = None):
        self.directory = directory or default_directory()

    def save(self, name: str, voice: Voice, overwrite: bool = False) -> Path:
        """Keep a voice under a name.

        Returns:
            Its file.

        Raises:
            ConfigError: the name cannot be used.
            OutputError: the library has a voice of that name and it is not to be overwritten, or cannot be written.
        """
        path = self.check_free(name, overwrite)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.directory}: the library of voices cannot be made ({error.strerror}); set CHATTERBOX_VOICES "
                "to a directory that can be written"
            ) from error
        voice.save(path, overwrite)
        return path

    def check_free(self, name: str, overwrite: bool = False) -> Path:
        """The file that `save` would write; costs nothing, so ask before a voice is enrolled.

        Raises:
            ConfigError, OutputError: as `save`, for the name.
        """
        path = self._path(name)
        if not overwrite and path.exists():
            raise OutputError(f"there is a voice named {name!r} already; choose another name, or delete it first")
        return path

    def voices(self) -> list[NamedVoice]:
        """All voices in the order of their names; other files are left alone.

        Raises:
            ConfigError: the directory cannot be read.
        """
        try:
            paths = sorted(self.directory.iterdir()) if self.directory.exists() else []
        except OSError as error:
            raise ConfigError(
                f"{self.directory}: the library of voices cannot be read ({error.strerror}); set CHATTERBOX_VOICES "
                "to another directory"
            ) from error
        entries = (_entry(path) for path in paths if path.suffix == SUFFIX and is_voice_name(path.stem))
        return [entry for entry in entries if entry is not None]

    def get(self, name: str) -> NamedVoice:
        """The voice of a name: `get(name).path` is its file, for `ChatterboxTTS.enrol`.

        Raises:
            ConfigError: there is none.
        """
        entry = _entry(self._path(name))
        if entry is None:
            raise self._unknown(name)
        return entry

    def load(self, name: str, config: ModelConfig | None = None) -> Voice:
        """Read the voice of a name, for a model (the published sizes by default).

        Raises:
            ConfigError: there is none.
            CheckpointError: its file is damaged, or made for another model.
        """
        return Voice.load(self.get(name).path, config)

    def delete(self, name: str) -> None:
        """Remove the voice of a name.

        Raises:
            ConfigError: there is none.
            OutputError: it cannot be removed.
        """
        path = self._path(self.saved_as(name) or name)
        try:
            path.unlink()
            self.records.delete(path.stem)
        except FileNotFoundError:
            raise self._unknown(name) from None
        except OSError as error:
            raise OutputError(f"{path}: the voice cannot be deleted ({error.strerror})") from error

    def look_up(self, name_or_path: str) -> Path | None:
        """An existing file, or that of the voice of a name; None where there is neither."""
        if _entry(Path(name_or_path)) is not None:
            return Path(name_or_path)
        saved = self.saved_as(name_or_path)
        return None if saved is None else self._path(saved)

    def saved_as(self, name: str) -> str | None:
        """The name of a voice's file: of a voice of that name, or of one that its owner calls so; None without one."""
        if is_voice_name(name) and _entry(self._path(name)) is not None:
            return name
        called = (record.id for record in self.records.all() if record.name == name)
        return next((saved for saved in called if _entry(self._path(saved)) is not None), None)

    @property
    def records(self) -> Records:
        """What is known of voices that were made through a server, whose files have numbers for names."""
        return Records(self.directory, "voice", VoiceRecord)

    def aliases(self) -> dict[str, str]:
        """Names that stand for voices, of this library or of a model, by the alias.

        Raises:
            CheckpointError: the file that holds them is damaged.
        """
        path = self.directory / _ALIASES
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict) or not all(isinstance(voice, str) for voice in found.values()):
                raise ValueError("it is no table of names")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); delete it and set the aliases anew") from error
        return found

    def set_alias(self, alias: str, voice: str | None) -> None:
        """Let a name stand for a voice; None takes the alias back.

        Raises:
            ConfigError: the alias cannot be a name, is a voice's own, or is none that could be taken back.
            OutputError: it cannot be written.
        """
        found = self.aliases()
        if voice is None:
            if found.pop(alias, None) is None:
                raise ConfigError(f"there is no alias {alias!r}; give one{named_alike(alias, found)}")
        else:
            check_label(alias, "an alias")
            if self.saved_as(alias) is not None:
                raise ConfigError(f"{alias!r} is a voice of its own: choose another alias, or remove that voice first")
            found[alias] = voice
        path = self.directory / _ALIASES
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(json.dumps(found, ensure_ascii=False, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); make room") from error

    def find(self, name_or_path: str, own: Mapping[str, Path] | None = None) -> Path:
        """The file that a user of this machine means: an existing file, or the voice of that name, here or a model's.

        Args:
            own: files of the voices that come with a model, by name; a saved voice of the same name goes before.

        Raises:
            ConfigError: there is no such file or voice.
        """
        own = own or {}
        path = self.look_up(name_or_path) or own.get(name_or_path)
        if path is None and (meant := self.aliases().get(name_or_path)) is not None:
            path = self.look_up(meant) or own.get(meant)
        if path is None:
            others = " or with the model" if own else ""
            names = [*(voice.name for voice in self.voices()), *own]
            raise ConfigError(
                f"there is neither a file {name_or_path!r} nor a voice of that name in {self.directory}{others}; give "
                f"a clip, a saved voice, or the name of one{named_alike(name_or_path, names)}"
            )
        return path

    def _path(self, name: str) -> Path:
        if not is_voice_name(name):
            raise ConfigError(
                f"a voice cannot be named {name!r}; use 1 to {_LONGEST_NAME} letters, digits, '-' and '_', a letter or "
                "digit first"
            )
        return self.directory / f"{name}{SUFFIX}"

    def _unknown(self, name: str) -> ConfigError:
        alike = named_alike(name, [voice.name for voice in self.voices()])
        return ConfigError(f"there is no voice named {name!r} in {self.directory}; give the name of one{alike}")


def named_alike(name: str, names: Iterable[str]) -> str:
    """For the end of a message: the names that come nearest to one that is unknown, or else the first few."""
    by_fold = {known.casefold(): known for known in names}
    near = get_close_matches(name.casefold(), by_fold, n=_MOST_TOLD)
    told = [by_fold[fold] for fold in near] or list(by_fold.values())[:_MOST_TOLD]
    return f", such as {', '.join(told)}" if told else " (there are none yet)"


def _entry(path: Path) -> NamedVoice | None:
    """What a file's name and status tell; None where there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    saved = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return NamedVoice(path.stem, path, status.st_size, saved)


def is_voice_name(name: object) -> bool:
    """Whether a voice can be kept under that name: letters (of any script, composed), digits, '-' and '_'."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= _LONGEST_NAME
        and name[0].isalnum()
        and all(character.isalnum() or character in "-_" for character in name)
        and unicodedata.is_normalized("NFC", name)
        and len((name + SUFFIX).encode()) <= 255
    )


def default_directory() -> Path:
    """CHATTERBOX_VOICES, or this package's place in the user's data directory.

    Raises:
        ConfigError: the user has no home directory.
    """
    if own := os.environ.get("CHATTERBOX_VOICES"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "chatterbox-vllm" / "voices"
    except RuntimeError as error:
        raise ConfigError(f"there is no place for voices ({error}); set CHATTERBOX_VOICES to a directory") from error
