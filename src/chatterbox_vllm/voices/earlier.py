"""Voices that lie in the library's directory itself: earlier versions kept them so, and anybody may put one there.

A file `NAME.pt` is the voice of that name. Those that a server made have numbers for names, and their owner's name in
a JSON file beside. Both are read where they are and never moved, so a directory that cannot be written serves too.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.voices.naming import SUFFIX, is_voice_id, is_voice_name

_ALIASES = "aliases.json"


@dataclass(frozen=True)
class PlainVoice:
    """A voice's file in the library's directory.

    Attributes:
        name: what its owner calls it.
        id: what its file is called.
        created_at: seconds since 1970.
    """

    name: str
    id: str
    path: Path
    bytes: int
    created_at: float
    consent: str | None = None
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Told:
    """What the JSON file beside a voice of a server tells."""

    name: str
    created_at: int
    consent: str | None = None
    languages: tuple[str, ...] = ()


_ADAPTER = TypeAdapter(_Told)


class EarlierVoices:
    """The voices and aliases that lie in a directory."""

    def __init__(self, directory: Path):
        self.directory = directory

    def all(self) -> list[PlainVoice]:
        """All of them; other files are left alone.

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
        found = (self._voice(path.stem) for path in paths if path.suffix == SUFFIX)
        return [voice for voice in found if voice is not None]

    def find(self, name: str) -> PlainVoice | None:
        """The voice whose file is called so, or else whose owner calls it so."""
        own = self._voice(name)
        if own is not None:
            return own
        numbered = (path.stem for path in self.directory.glob("voice_*.json") if is_voice_id(path.stem))
        found = (self._voice(number) for number in sorted(numbered))
        return next((voice for voice in found if voice is not None and voice.name == name), None)

    def delete(self, voice: PlainVoice) -> bool:
        """Remove it; False where it was gone.

        Raises:
            OSError: it cannot be removed.
        """
        try:
            voice.path.unlink()
        except FileNotFoundError:
            return False
        if is_voice_id(voice.id):
            voice.path.with_suffix(".json").unlink(missing_ok=True)
        return True

    def aliases(self) -> dict[str, str]:
        """Names that stand for voices, by the alias.

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

    def forget_alias(self, alias: str) -> bool:
        """Take an alias out of the table; False where it has none of that name.

        Raises:
            CheckpointError: the file that holds them is damaged.
            OutputError: it cannot be written.
        """
        found = self.aliases()
        if found.pop(alias, None) is None:
            return False
        path = self.directory / _ALIASES
        try:
            with whole_file(path) as file:
                file.write(json.dumps(found, ensure_ascii=False, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); make room") from error
        return True

    def _voice(self, stem: str) -> PlainVoice | None:
        if not is_voice_name(stem):
            return None
        path = self.directory / f"{stem}{SUFFIX}"
        try:
            status = os.stat(path)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        told = _told(path.with_suffix(".json")) if is_voice_id(stem) else None
        if told is None:
            return PlainVoice(stem, stem, path, status.st_size, status.st_mtime)
        return PlainVoice(told.name, stem, path, status.st_size, told.created_at, told.consent, told.languages)


def _told(path: Path) -> _Told | None:
    """What stands beside a voice; None where that is nothing that can be read, which does not harm the voice."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
