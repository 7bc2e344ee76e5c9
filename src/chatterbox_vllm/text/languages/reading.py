"""What is done with a text in its language before it is tokenized, as the published multilingual model has it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from chatterbox_vllm.text.languages.chinese import ChineseReader
from chatterbox_vllm.text.languages.hebrew import HebrewReader
from chatterbox_vllm.text.languages.japanese import JapaneseReader
from chatterbox_vllm.text.languages.library import LibraryReader
from chatterbox_vllm.text.languages.russian import RussianReader


class Reader:
    """Prepares texts of all languages. For several threads; what a language needs is loaded with its first text.

    Args:
        directory: of the model.
    """

    def __init__(self, directory: Path):
        self._chinese = ChineseReader(directory)
        # Given prepared, these are taken as they stand.
        others: dict[str, LibraryReader] = {
            "ja": JapaneseReader(),
            "he": HebrewReader(),
            "ru": RussianReader(),
        }
        self._others = others

    def read(self, text: str, language: str, prepared: bool) -> str:
        """A plain text as the tokenizer knows it.

        Args:
            text: of lower case, decomposed (see `plain`). That decomposes Hangul into jamo, too.
            language: ISO 639-1.
            prepared: what takes a library was done by whoever wrote the text.

        Raises:
            ConfigError: a library or its model cannot be had.
            CheckpointError: the model lacks a table.
        """
        if language == "zh":
            return self._chinese.read(text, prepared)
        if language == "ko":
            return text.strip()
        if language in self._others and not prepared:
            return self._others[language].read(text)
        return text


def plain(text: str) -> str:
    """Lower case, decomposed (Unicode's NFKD)."""
    return unicodedata.normalize("NFKD", text.lower())
