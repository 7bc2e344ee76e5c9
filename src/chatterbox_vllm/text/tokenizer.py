"""Text to T3's text tokens."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from tokenizers import Tokenizer

from chatterbox_vllm.errors import CheckpointError
from chatterbox_vllm.text.languages.reading import Reader, plain
from chatterbox_vllm.text.special_tokens import speak_special_tokens

_SPACE = "[SPACE]"
_UNKNOWN = "[UNK]"
_REQUIRED = ("[START]", "[STOP]", _UNKNOWN, _SPACE)


def _is_said(category: str) -> bool:
    """Whether characters of a Unicode category are said: letters, marks on them, digits, and signs of currencies."""
    return category[0] in "LMN" or category == "Sc"


class BpeTokenizer:
    """Chatterbox's tokenizer: BPE over characters, with a token of its own for the space.

    Attributes:
        special_tokens: "[START]", "[laughter]" and the like, which stand for something else than their characters.
        tags: none.
        unknown_id: stands for every character that the vocabulary lacks.

    Raises:
        CheckpointError: the file is missing or not such a tokenizer.
    """

    tags: frozenset[str] = frozenset()

    def __init__(self, path: Path):
        if not path.is_file():
            raise CheckpointError(f"{path}: no such tokenizer file; complete the directory or download the model again")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for anything that it cannot parse
            raise CheckpointError(f"{path}: not a tokenizer file ({error}); download the model again") from error
        self.special_tokens = frozenset(
            token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.content.strip()
        )
        missing = [token for token in _REQUIRED if self._tokenizer.token_to_id(token) is None]
        if missing:
            raise CheckpointError(f"{path}: lacks the tokens {', '.join(missing)}; is this Chatterbox's tokenizer?")
        self.unknown_id: int | None = self._tokenizer.token_to_id(_UNKNOWN)

    def encode(self, text: str, language: str | None = None, prepared: bool = False) -> list[int]:
        """Ids of `text`, without start and stop. It is of the model's one language."""
        return self._tokenizer.encode(text.replace(" ", _SPACE)).ids

    def unknown_letters(self, text: str, language: str | None = None, prepared: bool = False) -> list[str]:
        """Letters, digits and signs of currencies in a text that the vocabulary lacks, each once."""
        return self._unknown(text)

    def _unknown(self, text: str) -> list[str]:
        return [
            character
            for character in dict.fromkeys(text)
            if _is_said(unicodedata.category(character)) and self._tokenizer.token_to_id(character) is None
        ]


class MultilingualTokenizer(BpeTokenizer):
    """The same, of the multilingual models: a text is prepared in its language, and that language's tag leads it.

    Args:
        path: of the tokenizer's file; beside it lies what single languages need.

    Raises:
        CheckpointError: the file is missing or not such a tokenizer.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self._reader = Reader(path.parent)

    def encode(self, text: str, language: str | None = None, prepared: bool = False) -> list[int]:
        """Ids of `text`, without start and stop.

        Args:
            language: None leads it with no tag.
            prepared: what takes a library was done by whoever wrote the text.

        Raises:
            ConfigError: a library that the language needs cannot be had.
            CheckpointError: the model lacks a file that the language needs, or the language's tag.
        """
        if language is None:
            return super().encode(self._read(text, language, prepared))
        tag = f"[{language}]"
        if tag not in self.special_tokens:
            raise CheckpointError(f"this model's tokenizer has no tag {tag}; give another language")
        return super().encode(tag + self._read(text, language, prepared))

    def unknown_letters(self, text: str, language: str | None = None, prepared: bool = False) -> list[str]:
        """Letters, digits and signs of currencies, as the text is prepared, that the vocabulary lacks, each once."""
        return self._unknown(speak_special_tokens(self._read(text, language, prepared), self.special_tokens))

    def _read(self, text: str, language: str | None, prepared: bool) -> str:
        # In lower case there may be control tokens that were none before.
        text = speak_special_tokens(plain(text), self.special_tokens)
        return text if language is None else self._reader.read(text, language, prepared)
