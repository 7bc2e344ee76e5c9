"""Voices by name, in a directory that processes and machines may share.

names/      a small record for each name and kind of models, which points to
contents/   files named by the digest of what they hold: the voice itself, and a short clip of the speaker
aliases/    names that stand for voices
consents/   recordings of speakers who agree, kept by servers
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from chatterbox_vllm.checkpoint.config import ModelConfig, voice_kind
from chatterbox_vllm.errors import ChatterboxError, CheckpointError, ConfigError, OutputError
from chatterbox_vllm.voices import preview as previews
from chatterbox_vllm.voices.aliases import Aliases
from chatterbox_vllm.voices.contents import Contents
from chatterbox_vllm.voices.earlier import EarlierVoices, PlainVoice
from chatterbox_vllm.voices.entries import About, NamedVoice, Swept, entry_of, entry_of_plain
from chatterbox_vllm.voices.naming import (
    SUFFIX,
    check_label,
    check_voice_name,
    draw_id,
    is_voice_id,
    name_key,
    named_alike,
)
from chatterbox_vllm.voices.place import default_directory
from chatterbox_vllm.voices.records import Records, VoiceRecord, record_key
from chatterbox_vllm.voices.saved import read_voice
from chatterbox_vllm.voices.voice import Voice

# While a content is taken aside to be removed, a reader may find it missing for a moment.
_LOOKS, _READS, _LOOK_SECONDS = 20, 3, 0.05


class VoiceLibrary:
    """The saved voices of a directory; it is made when the first voice is saved.

    Every file appears whole or not at all and nothing is locked, so that processes may share the directory, also over
    a network file system.

    Args:
        directory: None is what CHATTERBOX_VOICES names, or else `chatterbox-vllm/voices` in the user's data directory.

    Raises:
        ConfigError: the user has no home directory, and nothing else is named.
    """

    def __init__(self, directory: Path | None = None):
        self.directory = directory or default_directory()
        self.contents = Contents(self.directory / "contents")
        self.records = Records(
            self.directory / "names", VoiceRecord, lambda record: record.key, r"[0-9a-f]{32}-[0-9a-f]{8}"
        )
        self._aliases = Aliases(self.directory)
        self._earlier = EarlierVoices(self.directory)

    def save(self, name: str, voice: Voice, overwrite: bool = False, about: About | None = None) -> Path:
        """Keep a voice under a name that is easily typed; see `keep`.

        Returns:
            Its file.

        Raises:
            ConfigError, OutputError: as `keep`; or the name is none of letters, digits, '-' and '_'.
        """
        return self.keep(check_voice_name(name), voice, overwrite, about).path

    def keep(
        self, name: str, voice: Voice, overwrite: bool = False, about: About | None = None, numbered: bool = False
    ) -> NamedVoice:
        """Keep a voice under any name. A name may have one voice for each kind of models.

        Args:
            overwrite: whether it may take the place of one that is there.
            numbered: whether the voice's id is a new number and not its name.

        Raises:
            ConfigError: the name cannot be used.
            OutputError: the library has such a voice and it is not to be overwritten, or it cannot be written.
        """
        about = about or About()
        name = check_label(name)
        self.check_free(name, voice.kind, overwrite)
        parts = [(voice.to_bytes(), SUFFIX)] + ([(about.preview, previews.SUFFIX)] if about.preview else [])
        paths = [self._put(*part) for part in parts]
        siblings = self._of_name(name)
        number = siblings[0].id if siblings else draw_id("voice") if numbered else name
        digests = [path.stem for path in paths]
        record = VoiceRecord(
            name,
            number,
            int(time.time()),
            voice.codebook,
            digests[0],
            len(parts[0][0]),
            digests[1] if about.preview else None,
            about.languages,
            about.consent,
            voice.recipe,
        )
        earlier = [old for old in siblings if old.kind == voice.kind]
        try:
            self.records.put(record, overwrite)
        except FileExistsError:  # another process was faster
            self._drop(set(digests))
            raise _taken(name) from None
        for part in parts:  # what was there may have been removed before the record pointed to it
            self._put(*part)
        if overwrite:
            if (plain := self._plain(name, voice.kind)) is not None:
                self._earlier.delete(plain)
            self._drop(_digests(earlier))
        return self._entry(record)

    def check_free(self, name: str, kind: str | None = None, overwrite: bool = False) -> None:
        """Whether `save` would take a name; costs nothing, so ask before a voice is enrolled.

        Raises:
            ConfigError, OutputError: as `keep`, for the name.
        """
        if is_voice_id(check_label(name)):
            raise ConfigError(f"a voice cannot be named {name!r}, which is what ids look like; choose another name")
        taken = self.records.path(record_key(name, kind)).exists() or self._plain(name, kind) is not None
        if taken and not overwrite:
            raise _taken(name)

    def voices(self) -> list[NamedVoice]:
        """All voices in the order of their names. Other files are left alone, and so are damaged ones.

        Raises:
            ConfigError: the directory cannot be read.
        """
        found = [self._entry(record) for record in self.records.all()]
        found += [entry_of_plain(voice) for voice in self._earlier.all()]
        return sorted(found, key=lambda voice: (voice.name, voice.kind or "", voice.is_plain))

    def look_for(self, name: str, kind: str | None = None) -> NamedVoice | None:
        """The voice of a name or an id, or None.

        Args:
            kind: of the model that is to speak. Where the name has voices, but none for it, it is one of those.

        Raises:
            CheckpointError: it is damaged.
        """
        record = self.records.get(record_key(name, kind))
        if record is not None:
            return self._whole(record)
        others = self._of_name(name) or self._of_id(name)
        fitting = [voice for voice in others if voice.kind == kind]
        plain = self._earlier.find(name)
        if plain is not None and not fitting:
            return entry_of_plain(plain)
        return self._whole((fitting or others)[0]) if others else None

    def get(self, name: str, kind: str | None = None) -> NamedVoice:
        """The voice of a name or an id: `get(name).path` is its file, for `ChatterboxTTS.enrol`.

        Args:
            kind: as for `look_for`.

        Raises:
            ConfigError: there is none.
            CheckpointError: it is damaged.
        """
        entry = self.look_for(name, kind)
        if entry is None:
            raise self._unknown(name)
        return entry

    def load(self, name: str, config: ModelConfig | None = None) -> Voice:
        """Read the voice of a name, for a model (the published sizes by default).

        Raises:
            ConfigError: there is none.
            CheckpointError: its file is damaged, or made for another model.
        """
        config = config or ModelConfig()
        return self.read(self.get(name, config.voice_kind).path, lambda path: Voice.load(path, config))

    def read(self, path: Path, reader: Callable[[Path], Voice]) -> Voice:
        """What a reader makes of a file of the library.

        Raises:
            ChatterboxError: what the reader raises.
        """
        for _ in range(_READS - 1):
            try:
                return reader(path)
            except ChatterboxError:  # perhaps it is aside for the moment, see `contents`
                time.sleep(_LOOK_SECONDS)
        return reader(path)

    def delete(self, name: str) -> str:
        """Remove the voice of a name or an id, for all kinds of models, with all content that no other voice uses.

        Returns:
            Its id.

        Raises:
            ConfigError: there is none.
            OutputError: it cannot be removed.
        """
        records = self._of_name(name) or self._of_id(name)
        plain = self._earlier.find(name)
        # Damaged ones as well.
        keys = {*self.records.keys(f"{name_key(name)}-"), *(record.key for record in records)}
        try:
            gone = [self.records.delete(key) for key in keys]
            if plain is not None:
                gone.append(self._earlier.delete(plain))
            if not any(gone):
                raise self._unknown(name)
        except OSError as error:
            raise OutputError(f"{self.directory}: {name!r} cannot be removed ({error.strerror or error})") from error
        self._drop(_digests(records))
        return records[0].id if records else plain.id if plain is not None else name

    def sweep(self) -> Swept:
        """Remove what nothing points to and what killed processes have left behind, and look through all voices.

        Raises:
            ConfigError: the directory cannot be read.
            OutputError: a file cannot be removed.
        """
        try:
            removed = self.contents.sweep(self.records.digests) + self.records.sweep() + self._aliases.records.sweep()
        except OSError as error:
            raise OutputError(f"{self.directory}: cannot be swept ({error.strerror or error})") from error
        faults = self.records.faults() + self._aliases.records.faults()
        for record in self.records.all():
            try:
                self.read(self._whole(record).path, Voice.unchecked)
                if record.preview is not None:
                    self.contents.read(self.contents.path(record.preview, previews.SUFFIX))
            except CheckpointError as error:
                if self.records.get(record.key) == record:  # else it was removed meanwhile
                    faults.append(f"{record.name}: {error}")
        for plain in self._earlier.all():
            try:
                read_voice(plain.path)
            except CheckpointError as error:
                faults.append(f"{plain.name}: {error}")
        return Swept(tuple(removed), tuple(faults))

    def alias(self, name: str) -> str | None:
        """What an alias stands for; None for a name that is none.

        Raises:
            CheckpointError: the file that holds it is damaged.
        """
        return self._aliases.get(name)

    def aliases(self) -> dict[str, str]:
        """Names that stand for voices, of this library or of a model, by the alias.

        Raises:
            CheckpointError: the file of earlier versions that holds them is damaged.
        """
        return self._aliases.all()

    def set_alias(self, alias: str, voice: str | None) -> None:
        """Let a name stand for a voice; None takes the alias back.

        Raises:
            ConfigError: the alias cannot be a name, is a voice's own, or is none that could be taken back.
            OutputError: it cannot be written.
        """
        if voice is None:
            self._aliases.delete(alias)
        elif self.look_for(alias) is not None:
            raise ConfigError(f"{alias!r} is a voice of its own: choose another alias, or remove that voice first")
        else:
            self._aliases.put(alias, voice)

    def look_up(
        self, name_or_path: str, kind: str | None = None, or_clip: bool = False, start: Path | None = None
    ) -> Path | None:
        """An existing file, or that of the voice of a name; None where there is neither.

        Args:
            kind: as for `look_for`.
            or_clip: where the voice is for other models, its clip if that was kept, to be enrolled.
            start: the directory where relative paths begin; None is the current one.

        Raises:
            CheckpointError: the voice of that name is damaged.
        """
        path = (start or Path()) / name_or_path
        if _is_file(path):
            return path
        found = self.look_for(name_or_path, kind)
        if found is None:
            return None
        return found.source(kind) if or_clip else found.path

    def find(
        self,
        name_or_path: str,
        own: Mapping[str, Path] | None = None,
        kind: str | None = None,
        or_clip: bool = False,
        start: Path | None = None,
    ) -> Path:
        """The file that a user of this machine means: an existing file, or the voice of that name, here or a model's.

        Args:
            own: files of the voices that come with a model, by name; a saved voice of the same name goes before.
            kind: of the model that is to speak.
            or_clip, start: as for `look_up`.

        Raises:
            ConfigError: there is no such file or voice.
            CheckpointError: the voice of that name is damaged.
        """
        own = own or {}
        path = self.look_up(name_or_path, kind, or_clip, start) or own.get(name_or_path)
        if path is None and (meant := self.alias(name_or_path)) is not None:
            path = self.look_up(meant, kind, or_clip, start) or own.get(meant)
        if path is None:
            others = " or with the model" if own else ""
            names = [*(voice.name for voice in self.voices()), *own]
            raise ConfigError(
                f"there is neither a file {str((start or Path()) / name_or_path)!r} nor a voice of that name in "
                f"{self.directory}{others}; give a clip, a saved voice, or the name of one"
                f"{named_alike(name_or_path, names)}"
            )
        return path

    def _put(self, data: bytes, suffix: str) -> Path:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.directory}: the library of voices cannot be made ({error.strerror}); set CHATTERBOX_VOICES "
                "to a directory that can be written"
            ) from error
        return self.contents.put(data, suffix)

    def _drop(self, digests: set[str]) -> None:
        """Remove contents that nothing points to any more.

        Raises:
            OutputError: a file cannot be removed.
        """
        try:
            self.contents.remove_unused(digests, self.records.digests)
        except OSError as error:
            raise OutputError(f"{self.directory}: content cannot be removed ({error.strerror or error})") from error

    def _of_name(self, name: str) -> list[VoiceRecord]:
        """The records of a name, for all kinds of models; damaged ones are left out."""
        found = []
        for key in self.records.keys(f"{name_key(name)}-"):
            try:
                record = self.records.get(key)
            except CheckpointError:
                continue
            if record is not None:
                found.append(record)
        return found

    def _plain(self, name: str, kind: str | None) -> PlainVoice | None:
        """A voice of that name and kind that lies in the directory itself, or a damaged one."""
        plain = self._earlier.find(name)
        try:
            return plain if plain is not None and voice_kind(*read_voice(plain.path)[2:]) == kind else None
        except CheckpointError:
            return plain

    def _of_id(self, name: str) -> list[VoiceRecord]:
        return [voice for voice in self.records.all() if voice.id == name] if is_voice_id(name) else []

    def _entry(self, record: VoiceRecord) -> NamedVoice:
        preview = self.contents.path(record.preview, previews.SUFFIX) if record.preview else None
        return entry_of(record, self.contents.path(record.voice, SUFFIX), preview)

    def _whole(self, record: VoiceRecord) -> NamedVoice:
        """The entry of a record whose content is there.

        Raises:
            CheckpointError: it is not.
        """
        entry = self._entry(record)
        for look in range(_LOOKS):
            if entry.path.exists() or self.contents.restore(entry.path):
                return entry
            if self.records.get(record.key) != record:  # it was removed or replaced meanwhile
                break
            time.sleep(_LOOK_SECONDS if look else 0)
        raise CheckpointError(
            f"the voice {record.name!r} is damaged: {entry.path} is missing; remove the voice and add it anew"
        )

    def _unknown(self, name: str) -> ConfigError:
        alike = named_alike(name, [voice.name for voice in self.voices()])
        return ConfigError(f"there is no voice named {name!r} in {self.directory}; give the name of one{alike}")


def _digests(records: Iterable[VoiceRecord]) -> set[str]:
    return {digest for record in records for digest in (record.voice, record.preview) if digest is not None}


def _taken(name: str) -> OutputError:
    return OutputError(f"there is a voice named {name!r} already; choose another name, or remove it first")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return False
