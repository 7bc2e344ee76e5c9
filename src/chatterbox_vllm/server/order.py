"""A request that was found to be in order, whatever way it came."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from chatterbox_vllm.audio.streams import STREAM_FORMATS
from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.server.schemas import Speaking
from chatterbox_vllm.server.voices import VoiceWish

MOST_IGNORED = 16  # names in a header


@dataclass(frozen=True)
class Order:
    """A request that was found to be in order.

    Attributes:
        model: the name of the one that speaks.
        format: a key of `STREAM_FORMATS`.
        language: its code, or as it was given while there is no model to ask; None where it was not.
        recording: an audio file to convert, in place of a text.
        sample_rate: of what is sent, in Hz.
        ignored: fields that change nothing, for the answer to tell.
    """

    model: str
    text: str
    wish: VoiceWish
    parameters: SpeechParameters
    format: str
    speed: float
    clean_text: bool
    language: str | None
    prepared_text: bool
    ignored: tuple[str, ...]
    recording: bytes | None = None
    sample_rate: int = SAMPLE_RATE

    @property
    def media_type(self) -> str:
        """For Content-Type."""
        return STREAM_FORMATS[self.format].media_type

    @property
    def headers(self) -> dict[str, str]:
        """What is known before the first audio."""
        return {"x-chatterbox-seed": str(self.parameters.seed), **ignored_header(self.ignored)}


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    """The header that tells which fields change nothing, where there are any."""
    told = ", ".join(names)
    return {"x-chatterbox-ignored": told} if told else {}


def ignored_fields(body: Speaking) -> tuple[str, ...]:
    """Fields that were given and change nothing."""
    names = [*(body.model_extra or {}), *(["instructions"] if body.instructions else [])]
    if body.ref_audio is not None and body.voice is not None:
        names.append("voice")
    if body.ref_audio is None and body.norm_loudness is not None:
        names.append("norm_loudness")
    return header_words(names)


def header_words(names: Iterable[str]) -> tuple[str, ...]:
    """Names of fields, fit for a header."""
    plain = (re.sub(r"[^\w.-]", "?", name, flags=re.ASCII)[:40] or "?" for name in names)
    return tuple(plain)[:MOST_IGNORED]
