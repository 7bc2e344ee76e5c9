"""Chinese: spaces between words, and each character as its Cangjie code."""

from __future__ import annotations

import json
import unicodedata
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.text.languages.library import PREPARED, extra, library

TABLE = "Cangjie5_TC.json"
_END = "[cj_.]"


class CangjieTable:
    """Codes of characters, from the file that comes with the model: a JSON list of "character, tab, code".

    Raises:
        CheckpointError: the file is missing or of another form.
    """

    def __init__(self, path: Path):
        try:
            entries = [entry.split("\t")[:2] for entry in json.loads(path.read_text(encoding="utf-8"))]
            codes = dict(entries)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{path}: no such file, and Chinese cannot be read without it; download the model again, or put "
                f"{TABLE} of ResembleAI/chatterbox there"
            ) from error
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path}: not a table of Cangjie codes ({error}); download it again") from error
        # Of characters with one code, all but the first are told apart by a number.
        alike: dict[str, list[str]] = {}
        for character, code in entries:
            alike.setdefault(code, []).append(character)
        self._tokens = {
            character: "".join(f"[cj_{key}]" for key in code + str(alike[code].index(character) or "")) + _END
            for character, code in codes.items()
        }

    def encode(self, text: str) -> str:
        """A text with tokens in place of all characters that the table has."""
        return "".join(
            self._tokens.get(character, character) if unicodedata.category(character) == "Lo" else character
            for character in text
        )


class ChineseReader:
    """Prepares Chinese texts. For several threads.

    Args:
        directory: of the model, which holds `TABLE`.
    """

    def __init__(self, directory: Path):
        self._path = directory / TABLE
        self._lock = Lock()

    def read(self, text: str, prepared: bool) -> str:
        """A text as the tokenizer knows it.

        Args:
            prepared: words have spaces between them already, or are to have none.

        Raises:
            CheckpointError: the model lacks its table.
            ConfigError: the library that finds words, or its model, cannot be had.
        """
        with self._lock:
            if not prepared:
                text = " ".join(self._segmenter.cut(text))
            return self._table.encode(text)

    @cached_property
    def _table(self) -> CangjieTable:
        return CangjieTable(self._path)

    @cached_property
    def _segmenter(self) -> Any:
        pkuseg = library("spacy_pkuseg", "spacy-pkuseg", "Chinese", extra("zh"))
        try:
            return pkuseg.pkuseg()
        except Exception as error:  # whatever a download can raise
            raise ConfigError(
                "Chinese texts need the model of spacy-pkuseg, which it downloads at first use and cannot have now "
                f"({type(error).__name__}: {error}); fetch {pkuseg.config.model_urls['spacy_ontonotes']} into "
                f"{pkuseg.config.pkuseg_home} and unpack it there, {PREPARED}"
            ) from error
