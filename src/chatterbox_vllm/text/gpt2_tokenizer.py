"""Text to the text tokens of Turbo and Nano: GPT-2's byte-level BPE, and tags such as "[chuckle]"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from chatterbox_vllm.errors import CheckpointError

VOCABULARY, MERGES, ADDED = FILES = ("vocab.json", "merges.txt", "added_tokens.json")
END_OF_TEXT = "<|endoftext|>"


class Gpt2Tokenizer:
    """Reads the published files, in the form in which GPT-2's have always been.

    Attributes:
        special_tokens: the one that stands for the end of a text. Tags are none: they are there to be written.
        unknown_id: None.
        tags: "[chuckle]" and the like, which the model speaks.
        size: how many ids there are.

    Raises:
        CheckpointError: a file is missing or not one of such a tokenizer.
    """

    def __init__(self, directory: Path):
        for name in FILES:
            if not (directory / name).is_file():
                raise CheckpointError(
                    f"{directory / name}: no such tokenizer file; complete the directory or download the model again"
                )
        try:
            vocabulary, added = (json.loads((directory / name).read_text("utf-8")) for name in (VOCABULARY, ADDED))
            self._tokenizer = _tokenizer(vocabulary, (directory / MERGES).read_text("utf-8"), added)
        except Exception as error:  # the library raises plain Exception for anything that it cannot use
            raise CheckpointError(
                f"{directory}: {', '.join(FILES)} are no tokenizer files ({error}); download the model again"
            ) from error
        self.special_tokens = frozenset({END_OF_TEXT})
        self.unknown_id: int | None = None
        self.tags = frozenset(added)
        self.size = self._tokenizer.get_vocab_size()

    def encode(self, text: str, language: str | None = None, prepared: bool = False) -> list[int]:
        """Ids of `text`; the model speaks one language."""
        return self._tokenizer.encode(text).ids

    def unknown_letters(self, text: str, language: str | None = None, prepared: bool = False) -> list[str]:
        """None: any character has tokens, by its bytes."""
        return []


def _tokenizer(vocabulary: dict[str, int], merges: str, added: Mapping[str, int]) -> Tokenizer:
    """Raises whatever the library raises, and ValueError for tags of other ids than their places'."""
    lines = (line for line in merges.splitlines() if line and not line.startswith("#version"))
    pairs = [(first, second) for first, second in (line.split(" ") for line in lines)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in sorted(added, key=lambda tag: added[tag])])
    wrong = [tag for tag, number in added.items() if tokenizer.token_to_id(tag) != number]
    if wrong:
        raise ValueError(f"{ADDED} gives {wrong[0]} the id {added[wrong[0]]}, which is not the next free one")
    return tokenizer
