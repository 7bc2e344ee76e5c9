"""What is known of a voice beside its sound, and of a speaker's consent: small JSON files, one a thing.

Files are named by digests or by numbers that are drawn here. What users call a thing stands inside.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from pydantic import StringConstraints, TypeAdapter

from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.checkpoint.config import voice_kind
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.voices.contents import DIGEST, left_behind, look_anew
from chatterbox_vllm.voices.naming import NUMBER, check_label, check_language, draw_id, name_key

_MOST_BYTES = 64 << 10

Digest = Annotated[str, StringConstraints(pattern=f"^{DIGEST}$")]
Record = TypeVar("Record")


@dataclass(frozen=True)
class VoiceRecord:
    """A voice of a name for models of one kind (see `voice_kind`); a name may have one for each.

    Attributes:
        name: what its owner calls it; any text.
        id: the same for all kinds.
        created_at: seconds since 1970.
        codebook: see `ModelConfig.codebook`.
        voice: digest of its file.
        bytes: of its file.
        preview: digest of a short clip of the speaker.
        languages: BCP 47 tags of what the clip speaks.
        consent: the id of the consent that it was made with.
        recipe: see `EnrolmentConfig.recipe`.
    """

    name: str
    id: str
    created_at: int
    codebook: str | None
    voice: Digest
    bytes: int
    preview: Digest | None = None
    languages: tuple[str, ...] = ()
    consent: str | None = None
    recipe: str | None = None

    @property
    def kind(self) -> str | None:
        """Of the models that can use it."""
        return voice_kind(self.codebook, self.recipe)

    @property
    def key(self) -> str:
        """What its file is called."""
        return record_key(self.name, self.kind)


def record_key(name: str, kind: str | None) -> str:
    """What the file of a name and kind is called."""
    return f"{name_key(name)}-{name_key(kind or '')[:8]}"


@dataclass(frozen=True)
class Alias:
    """A name that stands for a voice."""

    alias: str
    voice: str


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


class Records(Generic[Record]):
    """JSON files of one kind in a directory, each written whole; it is made when the first is put there.

    Args:
        make: the kind of record.
        key: the name of a record's file, without its suffix.
        pattern: of such names.
    """

    def __init__(self, directory: Path, make: type[Record], key: Callable[[Record], str], pattern: str):
        self.directory = directory
        self._key, self._pattern = key, re.compile(pattern)
        self._adapter = TypeAdapter(make)

    def path(self, key: str) -> Path:
        """The file of a key.

        Raises:
            ConfigError: it cannot be one; no other text comes near a path.
        """
        if self._pattern.fullmatch(key) is None:
            raise ConfigError(f"{key[:80]!r} is no id")
        return self.directory / f"{key}.json"

    def get(self, key: str) -> Record | None:
        """A record, or None where there is none of that key.

        Raises:
            CheckpointError: its file is damaged.
        """
        if self._pattern.fullmatch(key) is None:
            return None
        path = self.path(key)
        try:
            with path.open("rb") as file:
                record = self._adapter.validate_json(file.read(_MOST_BYTES), strict=True)
            if self._key(record) != key:
                raise ValueError("it is of another name")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = (str(error).splitlines() or ["it cannot be read"])[-1].strip()[:200]
            raise CheckpointError(f"{path}: damaged, or not a record ({reason}); delete it") from error
        return record

    def put(self, record: Record, overwrite: bool = True) -> None:
        """Write a record.

        Args:
            overwrite: whether an earlier one is replaced; where not, it is a `FileExistsError`. Of several processes
                that write one at the same time, one does.

        Raises:
            OutputError: it cannot be written.
            FileExistsError
        """
        path = self.path(self._key(record))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with whole_file(path, overwrite) as file:
                file.write(self._adapter.dump_json(record, indent=1))
        except FileExistsError:
            raise
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); make room") from error

    def keys(self, prefix: str = "") -> list[str]:
        """The keys of all records.

        Raises:
            ConfigError: the directory cannot be read.
        """
        try:
            # No `Path` for each of them: names are looked up for every request, and there may be thousands.
            names = [
                name[:-5] for name in os.listdir(self.directory) if name.startswith(prefix) and name.endswith(".json")
            ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(
                f"{self.directory}: the library of voices cannot be read ({error.strerror}); set CHATTERBOX_VOICES "
                "to another directory"
            ) from error
        return sorted(name for name in names if self._pattern.fullmatch(name))

    def all(self) -> Iterator[Record]:
        """All records that can be read: one that is damaged does not hide the others.

        Raises:
            ConfigError: the directory cannot be read.
        """
        for key in self.keys():
            try:
                record = self.get(key)
            except CheckpointError:
                continue
            if record is not None:
                yield record

    def faults(self) -> list[str]:
        """What is wrong with those that cannot be read."""
        found = []
        for key in self.keys():
            try:
                self.get(key)
            except CheckpointError as error:
                found.append(str(error))
        return found

    def delete(self, key: str) -> bool:
        """Remove a record; False where there was none."""
        if self._pattern.fullmatch(key) is None:
            return False
        try:
            self.path(key).unlink()
        except FileNotFoundError:
            return False
        return True

    def digests(self) -> set[str]:
        """All digests that stand in the files, also in damaged ones.

        Raises:
            OSError: one of them cannot be read.
        """
        found: set[str] = set()
        if not self.directory.exists():
            return found
        look_anew(self.directory)
        for key in self.keys():
            try:
                found.update(re.findall(DIGEST, self.path(key).read_bytes().decode(errors="replace")))
            except FileNotFoundError:  # removed in this moment
                continue
        return found

    def sweep(self) -> list[Path]:
        """Remove what killed processes have left behind; returns the files that are gone."""
        left = left_behind(self.directory) if self.directory.exists() else []
        for path in left:
            path.unlink(missing_ok=True)
        return left


@dataclass(frozen=True)
class Consents:
    """Recordings of consent, in a directory of the library."""

    directory: Path
    records: Records[Consent] = field(init=False)

    def __post_init__(self) -> None:
        records = Records(self.directory, Consent, lambda consent: consent.id, f"cons_{NUMBER}")
        object.__setattr__(self, "records", records)

    def all(self) -> list[Consent]:
        """Those that can be read, the newest first."""
        return sorted(self.records.all(), key=lambda consent: (-consent.created_at, consent.id))

    def create(self, name: str, language: str, recording: bytes) -> Consent:
        """Keep a recording, which the caller has found to be audio.

        Raises:
            ConfigError: a name or language that is none.
            OutputError: it cannot be written.
        """
        consent = Consent(draw_id("cons"), check_label(name), check_language(language), int(time.time()))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with whole_file(self._recording(consent.id)) as file:
                file.write(recording)
        except OSError as error:
            raise OutputError(f"{self.directory}: cannot be written ({error.strerror or error})") from error
        try:
            self.records.put(consent)
        except BaseException:  # nobody would find it to remove it
            self._recording(consent.id).unlink(missing_ok=True)
            raise
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
        """Remove a consent and its recording; False where there was none.

        Raises:
            OutputError: the recording cannot be removed; the consent then stays, to be removed again.
        """
        try:
            self._recording(consent).unlink(missing_ok=True)
        except ConfigError:  # it is no id
            return False
        except OSError as error:
            raise OutputError(f"{self.directory}: {consent} cannot be removed ({error.strerror or error})") from error
        return self.records.delete(consent)

    def _recording(self, consent: str) -> Path:
        return self.records.path(consent).with_suffix(".audio")
