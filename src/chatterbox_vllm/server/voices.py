"""From what a request calls a voice to the voice: the library, the model's own, and names that stand for others."""

from __future__ import annotations

import asyncio
import base64
import binascii
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatterbox_vllm.errors import ChatterboxError, ConfigError
from chatterbox_vllm.server.errors import ApiError
from chatterbox_vllm.server.names import OPENAI_VOICES
from chatterbox_vllm.server.options import ServerOptions
from chatterbox_vllm.server.remote import fetch_public
from chatterbox_vllm.server.schemas import ListedVoice
from chatterbox_vllm.voices.library import VoiceLibrary
from chatterbox_vllm.voices.records import VoiceRecord, check_label, draw_id

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
    """

    name: str | None = None
    clip: bytes | None = None


class VoiceBook:
    """All voices that a request can name."""

    def __init__(self, options: ServerOptions):
        self.library = VoiceLibrary(options.voices_directory)
        self._options = options
        self._enrolling = asyncio.Semaphore(_ENROLLING)
        self._own: tuple[str, ...] = ()

    def learn(self, tts: ChatterboxTTS) -> None:
        """Take down the names of the model's own voices, which are listed also while the model is unloaded."""
        self._own = tuple(tts.voices)

    def check_options(self, tts: ChatterboxTTS) -> None:
        """Refuse options that name voices which there are not, before a request meets them.

        Raises:
            ConfigError: naming the option and the voice.
        """
        named = {f"voice_aliases: {alias}": voice for alias, voice in self._options.voice_aliases.items()}
        if self._options.default_voice is not None:
            named["default_voice"] = self._options.default_voice
        for option, name in named.items():
            try:
                self._named(tts, name)
            except (ApiError, ChatterboxError) as error:
                reason = error.message if isinstance(error, ApiError) else str(error)
                raise ConfigError(f"{option} cannot be {name!r}: {reason}") from error

    async def voice(self, tts: ChatterboxTTS, wish: VoiceWish) -> Voice:
        """The voice that a request wishes.

        Raises:
            ApiError: there is no such voice.
            AudioError, CheckpointError: it cannot be used.
        """
        if wish.clip is not None:
            return await self.enrol(tts, wish.clip)
        name = wish.name if wish.name is not None else self._options.default_voice
        return await asyncio.to_thread(self._named, tts, name)

    async def enrol(self, tts: ChatterboxTTS, clip: bytes) -> Voice:
        """The voice of a clip.

        Raises:
            AudioError: the clip cannot serve.
        """
        async with self._enrolling:
            return await asyncio.to_thread(tts.enrol_clip, clip)

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

    def _named(self, tts: ChatterboxTTS, name: str | None) -> Voice:
        target = name
        if name is not None and self.library.saved_as(name) is None and name not in self._own:
            target = self._stands_for(name)
        if target is None or target == DEFAULT:
            if tts.conds is None:
                raise ApiError(400, "the model has no voice of its own: name one", "voice", "voice_needed")
            return tts.conds
        saved = self.library.saved_as(target)
        if saved is not None:
            return tts.enrol(self.library.get(saved).path)
        if target in self._own:
            return tts.builtin_voice(target)
        raise self.unknown(str(name))

    def _stands_for(self, name: str) -> str | None:
        """What an alias means; None is the default voice.

        Raises:
            ApiError: the name is no alias.
        """
        if (voice := self._aliases().get(name)) is not None:
            return voice
        if name == DEFAULT:
            return None
        if name in OPENAI_VOICES:
            # A model's voices may be called after them, such as af_alloy; else each stands for another of its voices.
            alike = [own for own in self._own if own.endswith(f"_{name}")]
            others = [own for own in self._own if own != "builtin"]
            return alike[0] if alike else others[OPENAI_VOICES.index(name) % len(others)] if others else None
        raise self.unknown(name)

    def _aliases(self) -> dict[str, str]:
        """The library's aliases, and before them the server's own."""
        return self.library.aliases() | self._options.voice_aliases

    def unknown(self, name: str) -> ApiError:
        """The answer for a name that means nothing."""
        names = [voice.name for voice in self.listed()]
        near = difflib.get_close_matches(name, names, 3) or names[:5]
        return ApiError(
            400, f"there is no voice {name[:80]!r}; use one such as {', '.join(near)}", "voice", "voice_not_found"
        )

    def listed(self) -> list[ListedVoice]:
        """All voices: those of the library, the model's own, and aliases."""
        records = {record.id: record for record in self.library.records.all()}
        entries = []
        for saved in self.library.voices():
            known = records.get(saved.name)
            entries.append(ListedVoice(id=saved.name, name=known.name if known else saved.name, kind="library"))
        entries.append(ListedVoice(id=DEFAULT, name=DEFAULT, kind="model"))
        entries += [ListedVoice(id=name, name=name, kind="model") for name in self._own]
        taken = {entry.id for entry in entries}
        for alias in (*self._aliases(), *OPENAI_VOICES):
            if alias not in taken:
                taken.add(alias)
                stands = self._stands_for(alias) or DEFAULT
                entries.append(ListedVoice(id=alias, name=alias, kind="alias", speaks_as=stands))
        return entries

    def add(self, name: str, voice: Voice, consent: str | None, created_at: int) -> VoiceRecord:
        """Keep a voice of an owner's.

        Raises:
            ApiError: there is one of that name.
            ConfigError, OutputError: the name is none, or it cannot be written.
        """
        label = check_label(name)
        if self.library.saved_as(label) is not None:
            raise ApiError(409, f"there is a voice {label!r} already; choose another name", "name", "name_taken")
        record = VoiceRecord(draw_id("voice"), label, created_at, consent)
        self.library.save(record.id, voice)
        self.library.records.put(record)
        return record

    def delete(self, voice: str) -> str | None:
        """Remove a voice of the library by its id or name; None where there is none."""
        saved = self.library.saved_as(voice)
        if saved is None:
            return None
        try:
            self.library.delete(saved)
        except ConfigError:  # somebody else was faster
            return None
        return saved
