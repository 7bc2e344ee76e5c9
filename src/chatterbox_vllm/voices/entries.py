"""What the library tells of a voice."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from chatterbox_vllm.checkpoint.config import voice_kind
from chatterbox_vllm.voices.earlier import PlainVoice
from chatterbox_vllm.voices.naming import check_language
from chatterbox_vllm.voices.records import VoiceRecord


@dataclass(frozen=True)
class NamedVoice:
    """A voice of the library.

    Attributes:
        id: for programs; of a voice that was added by hand, its name.
        path: its file, for `ChatterboxTTS.enrol`.
        bytes: of its file.
        saved: when it was made.
        codebook: of the models that it is for, see `ModelConfig.codebook`.
        is_plain: whether its file lies in the library's directory itself; its codebook then shows when it is read.
        preview: a short clip of the speaker.
        languages: BCP 47 tags of what the clip spoke.
        consent: the id of the consent that it was made with.
        recipe: by which it was made, see `EnrolmentConfig.recipe`.
    """

    name: str
    id: str
    path: Path
    bytes: int
    saved: datetime
    codebook: str | None = None
    is_plain: bool = False
    preview: Path | None = None
    languages: tuple[str, ...] = ()
    consent: str | None = None
    recipe: str | None = None

    @property
    def kind(self) -> str | None:
        """Of the models that can use it, see `voice_kind`."""
        return voice_kind(self.codebook, self.recipe)

    def source(self, kind: str | None) -> Path:
        """What a model of a kind makes the voice of: its file, or where that is for other models, its kept clip."""
        fits = self.is_plain or self.kind == kind
        return self.path if fits or self.preview is None else self.preview


@dataclass(frozen=True)
class About:
    """What is kept beside a voice.

    Attributes:
        preview: a clip of the speaker, from `preview.preview_of`.
        languages: BCP 47 tags of what the clip speaks.
        consent: the id of a consent.

    Raises:
        ConfigError: a language that is none.
    """

    preview: bytes | None = None
    languages: tuple[str, ...] = ()
    consent: str | None = None

    def __post_init__(self) -> None:
        for language in self.languages:
            check_language(language)


@dataclass(frozen=True)
class Swept:
    """What `VoiceLibrary.sweep` has done and found.

    Attributes:
        removed: files that nothing pointed to.
        faults: what is wrong with voices that cannot be used, in words.
    """

    removed: tuple[Path, ...]
    faults: tuple[str, ...]


def entry_of(record: VoiceRecord, path: Path, preview: Path | None) -> NamedVoice:
    """The entry of a record, whose files are named."""
    return NamedVoice(
        name=record.name,
        id=record.id,
        path=path,
        bytes=record.bytes,
        saved=datetime.fromtimestamp(record.created_at, timezone.utc),
        codebook=record.codebook,
        preview=preview,
        languages=record.languages,
        consent=record.consent,
        recipe=record.recipe,
    )


def entry_of_plain(voice: PlainVoice) -> NamedVoice:
    """The entry of a voice that lies in the library's directory itself."""
    return NamedVoice(
        name=voice.name,
        id=voice.id,
        path=voice.path,
        bytes=voice.bytes,
        saved=datetime.fromtimestamp(voice.created_at, timezone.utc),
        is_plain=True,
        languages=voice.languages,
        consent=voice.consent,
    )
