"""What is known of a saved voice beside its sound, in a JSON file next to it; and recordings of consent.

Files are named by numbers that are drawn here. What users call a thing stands inside.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError

_NUMBER_BYTES = 12
_MOST_BYTES = 64 << 10
_LONGEST_NAME = 200


@dataclass(frozen=True)
class VoiceRecord:
    """A voice as its owner knows it.

    Attributes:
        id: the name of its file in the library.
        name: what its owner calls it; any text.
        created_at: seconds since 1970.
        consent: the id of the consent that it was made with.
        languages: BCP 47 tags of what the clip speaks.
    """

    id: str
    name: str
    created_at: int
    consent: str | None = None
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Consent:
    """A recording of a speaker who agrees to a voice being made.

    Attributes:
        id: the name of its files.
        name: what it is called; any text.
        language: BCP 47 tag of the recording.
        created_at: seconds since 1970.
    """

    id: str
    name: str
    language: str
    created_at: int


def check_label(name: str, what: str = "name") -> str:
    """A name that people read: one line, not empty.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < len(name.strip()) <= _LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"{what} must be 1 to {_LONGEST_NAME} printable characters, not {name[:40]!r}")
    return name.strip()


def draw_id(prefix: str) -> str:
    """A new id, such as voice_0f3a…, which nobody can guess."""
    return f"{prefix}_{secrets.token_hex(_NUMBER_BYTES)}"


class Records:
    """JSON files of one kind in a directory, each written whole.

    Args:
        prefix: of the ids.
        make: the kind of record.
    """

    def __init__(self, directory: Path, prefix: str, make: type[Any]):
        self.directory = directory
        self._id = re.compile(rf"{prefix}_[0-9a-f]{{{2 * _NUMBER_BYTES}}}")
        self._make: Callable[..., Any] = make
        self._names = {f.name for f in fields(make)}

    def is_id(self, value: str) -> bool:
        """Whether it can be the id of a record; no other text comes near a path."""
        return self._id.fullmatch(value) is not None

    def path(self, record: str) -> Path:
        """The file of a record."""
        if not self.is_id(record):
            raise ConfigError(f"{record[:80]!r} is no id")
        return self.directory / f"{record}.json"

    def get(self, record: str) -> Any:
        """A record, or None where there is none of that id.

        Raises:
            CheckpointError: its file is damaged.
        """
        if not self.is_id(record):
            return None
        path = self.path(record)
        try:
            with path.open("rb") as file:
                data = json.loads(file.read(_MOST_BYTES))
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items() if name in self._names}
            return self._make(**values | {"id": record})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: damaged, or not a record ({error}); delete it") from error

    def put(self, record: Any) -> None:
        """Write a record, in the place of an earlier one.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.path(record.id)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                file.write(json.dumps(asdict(record), ensure_ascii=False, indent=1).encode())
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); make room") from error

    def all(self) -> list[Any]:
        """All that can be read, the newest first."""
        try:
            names = [path.stem for path in self.directory.glob("*.json") if self.is_id(path.stem)]
        except OSError:
            names = []
        found = []
        for name in names:
            try:
                record = self.get(name)
            except CheckpointError:  # one that is damaged does not hide the others
                continue
            if record is not None:
                found.append(record)
        return sorted(found, key=lambda record: (-record.created_at, record.id))

    def delete(self, record: str) -> bool:
        """Remove a record; False where there was none."""
        if not self.is_id(record):
            return False
        try:
            self.path(record).unlink()
        except FileNotFoundError:
            return False
        return True


@dataclass(frozen=True)
class Consents:
    """Recordings of consent, in a directory of the library."""

    directory: Path
    records: Records = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", Records(self.directory, "cons", Consent))

    def create(self, name: str, language: str, recording: bytes) -> Consent:
        """Keep a recording, which the caller has found to be audio.

        Raises:
            ConfigError: a name or language that is none.
            OutputError: it cannot be written.
        """
        if not re.fullmatch(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", language):
            raise ConfigError(f"language must be a BCP 47 tag such as en-US, not {language[:40]!r}")
        consent = Consent(draw_id("cons"), check_label(name), language, int(time.time()))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with whole_file(self._recording(consent.id)) as file:
                file.write(recording)
        except OSError as error:
            raise OutputError(f"{self.directory}: cannot be written ({error.strerror or error})") from error
        self.records.put(consent)
        return consent

    def rename(self, consent: Consent, name: str) -> Consent:
        """The same with another name.

        Raises:
            ConfigError, OutputError
        """
        changed = replace(consent, name=check_label(name))
        self.records.put(changed)
        return changed

    def delete(self, consent: str) -> bool:
        """Remove a consent and its recording; False where there was none."""
        there = self.records.delete(consent)
        if there:
            self._recording(consent).unlink(missing_ok=True)
        return there

    def _recording(self, consent: str) -> Path:
        return self.records.path(consent).with_suffix(".audio")
