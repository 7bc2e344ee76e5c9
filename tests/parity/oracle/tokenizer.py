"""A tokenizer of the published English one's size and form, with a vocabulary of our own.

It stands in the synthetic checkpoint where the published file, which this project does not carry, is not at hand. Ids
that the model knows by number are where they are published; all others differ, so it says nothing about text tokens.
"""

from __future__ import annotations

import itertools
import string
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers

SIZE, MULTILINGUAL_SIZE = 704, 2454
_SPECIAL = {"[STOP]": 0, "[UNK]": 1, "[SPACE]": 2, "[START]": 255}
_PUNCTUATION = "!'\"(),-./:;?’“”–—…"
_ACCENTED = "àâäåæçèéêëìíîïñòóôöøùúûüßœ"


def write_tokenizer(path: Path, size: int = SIZE, tags: tuple[str, ...] = ()) -> None:
    """Single characters, and a merge for every consonant with a vowel after it; `tags` are special tokens."""
    merges = list(itertools.product("bcdfghjklmnpqrstvwxyz", "aeiou"))
    pieces = [*tags, *string.ascii_letters, *string.digits, *_PUNCTUATION, *_ACCENTED, *map("".join, merges)]
    free = (number for number in range(size) if number not in _SPECIAL.values())
    vocabulary = _SPECIAL | dict(zip(pieces, free, strict=False))
    vocabulary |= {f"[UNUSED{number}]": number for number in free}
    assert sorted(vocabulary.values()) == list(range(size))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([name for name in vocabulary if name.startswith("[")])
    tokenizer.save(str(path))
