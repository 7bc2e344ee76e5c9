"""How the texts of a batch are read."""

from __future__ import annotations

from dataclasses import dataclass

from chatterbox_vllm.text.pauses import DEFAULT_PAUSES, Pauses


@dataclass(frozen=True)
class Reading:
    """Fields of `SpeechRequest` that all rows share; see there. A row may name another language."""

    pauses: Pauses = DEFAULT_PAUSES
    clean_text: bool = False
    language: str | None = None
    prepared_text: bool = False
