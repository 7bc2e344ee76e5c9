"""Japanese: kanji as they are read, in hiragana."""

from __future__ import annotations

import unicodedata
from typing import Any

from chatterbox_vllm.text.languages.library import LibraryReader, extra, library

# As published: a kanji is one of this block, and the two particles that are written otherwise than they are spoken get
# a space before them where a reading begins with them.
_KANJI = range(0x4E00, 0xA000)
_PARTICLES = ("は", "へ")


class JapaneseReader(LibraryReader):
    """Writes Japanese texts without kanji, decomposed (Unicode's NFKD)."""

    fault = "pykakasi cannot tell how a text is read"

    def _prepared(self, tool: Any, text: str) -> str:
        words = tool.convert(text)
        return unicodedata.normalize("NFKD", "".join(_reading(word["orig"], word["hira"]) for word in words))

    def _loaded(self) -> Any:
        return library("pykakasi", "pykakasi", "Japanese", extra("ja")).kakasi()


def _reading(written: str, hiragana: str) -> str:
    if not any(ord(character) in _KANJI for character in written):
        return written
    return f" {hiragana}" if hiragana.startswith(_PARTICLES) else hiragana
