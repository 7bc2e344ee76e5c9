"""Japanese: kanji as they are read, in hiragana."""

from __future__ import annotations

import unicodedata
from functools import cached_property
from threading import Lock
from typing import Any

from chatterbox_vllm.text.languages.library import extra, library

# As published: a kanji is one of this block, and the two particles that are written otherwise than they are spoken get
# a space before them where a reading begins with them.
_KANJI = range(0x4E00, 0xA000)
_PARTICLES = ("は", "へ")


class JapaneseReader:
    """Prepares Japanese texts. For several threads."""

    def __init__(self) -> None:
        self._lock = Lock()

    def read(self, text: str) -> str:
        """A text without kanji, decomposed (Unicode's NFKD).

        Raises:
            ConfigError: the library that knows readings is not installed.
        """
        with self._lock:
            words = self._kakasi.convert(text)
        return unicodedata.normalize("NFKD", "".join(_reading(word["orig"], word["hira"]) for word in words))

    @cached_property
    def _kakasi(self) -> Any:
        return library("pykakasi", "pykakasi", "Japanese", extra("ja")).kakasi()


def _reading(written: str, hiragana: str) -> str:
    if not any(ord(character) in _KANJI for character in written):
        return written
    return f" {hiragana}" if hiragana.startswith(_PARTICLES) else hiragana
