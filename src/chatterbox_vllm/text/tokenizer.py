"""Text to T3's text tokens."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from chatterbox_vllm.errors import CheckpointError

_SPACE = "[SPACE]"
_REQUIRED = ("[START]", "[STOP]", "[UNK]", _SPACE)


class BpeTokenizer:
    """Chatterbox's tokenizer: BPE over characters, with a token of its own for the space.

    Attributes:
        special_tokens: "[START]", "[laughter]" and the like, which stand for something else than their characters.

    Raises:
        CheckpointError: the file is missing or not such a tokenizer.
    """

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

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Ids of `text`, without start and stop; there is one language, so that `language` says nothing new."""
        return self._tokenizer.encode(text.replace(" ", _SPACE)).ids
