"""From what a request calls a voice to the voice: the library, the model's own, and names that stand for others."""

from __future__ import annotations

import asyncio
import base64
import binascii
import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.errors import ChatterboxError, ConfigError, OutputError
from chatterbox_vllm.server.errors import ApiError, api_error
from chatterbox_vllm.server.names import OPENAI_VOICES
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.remote import fetch_public
from chatterbox_vllm.server.schemas import ListedVoice
from chatterbox_vllm.voices.entries import About, NamedVoice
from chatterbox_vllm.voices.library import VoiceLibrary
from chatterbox_vllm.voices.naming import check_label
from chatterbox_vllm.voices.preview import preview_of
from chatterbox_vllm.voices.reference import MAX_REFERENCE_SECONDS

if TYPE_CHECKING:
    from chatterbox_vllm.tts import ChatterboxTTS
    from chatterbox_vllm.voices.voice import Voice

DEFAULT = "default"
# Clips that are enrolled at once: it takes as much of the machine as speaking does.
_ENROLLING = 2
_FETCH_SECONDS = 20.0


@dataclass(frozen=True)
class VoiceWish:
    """How a request names its voice; at most one of the two.

    Attributes:
        name: of a voice, or its id.
        clip: a reference clip, decoded from base64 or fetched.
        norm_loudness: of the clip, see `VoiceEnroller.enrol`.
    """

    name: str | None = None
    clip: bytes | None = None
    norm_loudness: bool | None = None


class VoiceBook:
    """All voices that a request can name."""

    def __init__(self, options: ServerOptions):
        self.library = VoiceLibrary(options.voices_directory)
        self._options = options
        # Threads of its own: what was begun goes on when its client has left, and is to count until it ends.
        self._enrolling = ThreadPoolExecutor(_ENROLLING, "chatterbox-enrol")
        self._own: dict[str, tuple[str, ...]] = {}  # by the model's name
        self._kinds: dict[str, str | None] = {}  # likewise, of the voices that it can use

    def learn(self, model: str, own: Sequence[str], kind: str | None) -> None:
        """Take down which voices a model has and can use; they are listed also while it is unloaded."""
        self._own[model], self._kinds[model] = tuple(own), kind

    def check_options(self, model: str, tts: ChatterboxTTS) -> None:
        """Refuse options that name voices which a model has not, before a request meets them.

        Raises:
            ConfigError: naming the option and the voice.
        """
        named = {f"voice_aliases: {alias}": voice for alias, voice in self._options.voice_aliases.items()}
        if self._options.default_voice is not None:
            named["default_voice"] = self._options.default_voice
        for option, name in named.items():
            try:
                self._named(model, tts, name)
            except (ApiError, ChatterboxError) as error:
                reason = error.message if isinstance(error, ApiError) else str(error)
                raise ConfigError(f"{option} cannot be {name!r}: {reason}") from error

    async def voice(self, model: str, tts: ChatterboxTTS, wish: VoiceWish) -> Voice:
        """The voice that a request wishes of a model.

        Raises:
            ApiError: there is no such voice.
            AudioError, CheckpointError: it cannot be used.
        """
        if wish.clip is not None:
            return await self.enrol(tts, wish.clip, wish.norm_loudness)
        name = wish.name if wish.name is not None else self._options.default_voice
        if name is None:  # the model's own, for which nothing is read
            return self._named(model, tts, None)
        return await asyncio.to_thread(self._named, model, tts, name)

    async def enrol(self, tts: ChatterboxTTS, clip: bytes, norm_loudness: bool | None = None) -> Voice:
        """The voice of a clip.

        Raises:
            AudioError: the clip cannot serve.
            ApiError: the model does not do with its loudness what is asked for.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._enrolling, tts.enrol_clip, clip, norm_loudness)
        except ConfigError as error:
            raise api_error(error, "norm_loudness") from error

    async def clip(self, given: str) -> bytes:
        """The bytes of `ref_audio`.

        Raises:
            ApiError: it is neither base64 nor an address that may be fetched.
        """
        if given[:8].lower().startswith(("http://", "https://")):
            if not self._options.url_audio:
                raise ApiError(
                    400, "ref_audio: addresses are not taken here; send the clip in base64", "ref_audio", "not_allowed"
                )
            return await asyncio.to_thread(fetch_public, given, self._options.max_body, _FETCH_SECONDS)
        data = given.partition(",")[2] if given.startswith("data:") else given
        try:
            return base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError):
            raise ApiError(400, "ref_audio: is neither base64 nor an address", "ref_audio", "invalid_audio") from None

    def _named(self, model: str, tts: ChatterboxTTS, name: str | None) -> Voice:
        saved = None if name is None else self.library.look_for(name, tts.voice_kind)
        target, own = name, self._own[model]
        if name is not None and saved is None and name not in own:
            target = self._stands_for(name, own)
            saved = None if target is None else self.library.look_for(target, tts.voice_kind)
        if saved is not None:
            return self.library.read(saved.source(tts.voice_kind), tts.enrol)
        if target is None or target == DEFAULT:
            if tts.conds is None:
                raise ApiError(400, "the model has no voice of its own: name one", "voice", "voice_needed")
            return tts.conds
        if target in own:
            return tts.builtin_voice(target)
        raise self._unknown(str(name), own)

    @property
    def _default_own(self) -> tuple[str, ...]:
        """The first model's own voices."""
        return next(iter(self._own.values()), ())

    @property
    def _default_kind(self) -> str | None:
        """The kind of the first model's voices."""
        return next(iter(self._kinds.values()), None)

    def _stands_for(self, name: str, own: Sequence[str]) -> str | None:
        """What an alias means to a model with voices of its own; None is the default voice.

        Raises:
            ApiError: the name is no alias.
        """
        if (voice := self._options.voice_aliases.get(name) or self.library.alias(name)) is not None:
            return voice
        if name == DEFAULT:
            return None
        if name in OPENAI_VOICES:
            # A model's voices may be called after them, such as af_alloy; else each stands for another of its voices.
            alike = [voice for voice in own if voice.endswith(f"_{name}")]
            others = [voice for voice in own if voice != "builtin"]
            return alike[0] if alike else others[OPENAI_VOICES.index(name) % len(others)] if others else None
        raise self._unknown(name, own)

    def _unknown(self, name: str, own: Sequence[str]) -> ApiError:
        """The answer for a name that means nothing to a model with voices of its own."""
        names = [voice.name for voice in self.listed() if voice.kind != "model" or voice.id in (DEFAULT, *own)]
        near = difflib.get_close_matches(name, names, 3) or names[:5]
        return ApiError(
            400, f"there is no voice {name[:80]!r}; use one such as {', '.join(near)}", "voice", "voice_not_found"
        )

    def listed(self, model: str | None = None) -> list[ListedVoice]:
        """All voices that a model can use: those of the library, its own, and aliases; None is any of the models."""
        entries = [_listed(voice) for voice in self._saved(model)]
        entries.append(ListedVoice(id=DEFAULT, name=DEFAULT, kind="model"))
        every = self._own[model] if model else dict.fromkeys(name for own in self._own.values() for name in own)
        entries += [
            ListedVoice(
                id=name, name=name, kind="model", models=[model for model, own in self._own.items() if name in own]
            )
            for name in every
        ]
        taken = {entry.id for entry in entries}
        for alias in (*(self.library.aliases() | self._options.voice_aliases), *OPENAI_VOICES):
            if alias not in taken:
                taken.add(alias)
                stands = self._stands_for(alias, self._own[model] if model else self._default_own) or DEFAULT
                entries.append(ListedVoice(id=alias, name=alias, kind="alias", speaks_as=stands))
        return entries

    def _saved(self, model: str | None) -> list[NamedVoice]:
        """The voices of the library that a model can use, by their kept clips, too; None is any, without the clips.

        Of a name that has voices of several kinds, it is the one that fits, or else the first.
        """
        saved = [voice for voice in self.library.voices() if voice.is_plain or voice.kind in self._kinds.values()]
        kind = self._default_kind if model is None else self._kinds[model]
        fitting = [voice for voice in saved if voice.is_plain or voice.kind == kind]
        others = saved if model is None else [voice for voice in saved if voice.preview is not None]
        named: dict[str, NamedVoice] = {}
        for voice in (*fitting, *others):
            named.setdefault(voice.name, voice)
        return list(named.values())

    def add(self, name: str, voice: Voice, about: About) -> NamedVoice:
        """Keep a voice of an owner's.

        Raises:
            ApiError: there is one of that name.
            ConfigError, OutputError: the name is none, or it cannot be written.
        """
        label = check_label(name)
        taken = ApiError(409, f"there is a voice {label!r} already; choose another name", "name", "name_taken")
        if self.library.look_for(label) is not None:
            raise taken
        try:
            return self.library.keep(label, voice, about=about, numbered=True)
        except OutputError:
            if self.library.look_for(label) is not None:  # somebody else was faster
                raise taken from None
            raise

    def delete(self, voice: str) -> str | None:
        """Remove a voice of the library by its id or name; None where there is none."""
        try:
            return self.library.delete(voice)
        except ConfigError:
            return None

    def preview(self, voice: str) -> bytes | None:
        """The preview of a voice or of what an alias stands for, as FLAC; None where there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        saved = self.library.look_for(voice, self._default_kind)
        if saved is None and all(voice not in own for own in self._own.values()):
            try:
                target = self._stands_for(voice, self._default_own)
            except ApiError:
                return None
            saved = None if target is None else self.library.look_for(target, self._default_kind)
        return None if saved is None or saved.preview is None else self.library.contents.read(saved.preview)


def preview_of_clip(clip: bytes) -> bytes:
    """The preview of a reference clip, the bytes of an audio file that was enrolled."""
    return preview_of(*decode_audio(clip, MAX_REFERENCE_SECONDS))


def _listed(voice: NamedVoice) -> ListedVoice:
    return ListedVoice(
        id=voice.id,
        name=voice.name,
        kind="library",
        created_at=round(voice.saved.timestamp()),
        languages=list(voice.languages),
        preview=None if voice.preview is None else f"/v1/audio/voices/{quote(voice.id, safe='')}/preview",
    )
