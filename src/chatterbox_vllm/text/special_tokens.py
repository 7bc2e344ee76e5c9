"""A tokenizer's control tokens in what a user wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache


def speak_special_tokens(text: str, tokens: frozenset[str]) -> str:
    """A text in which no control token acts: "[it]" becomes "it", "[clear_throat]" "clear throat".

    A tokenizer reads such a token wherever its characters stand, so "Take [it]" would lose a word. Its words are spoken
    without its brackets.

    Args:
        tokens: as the tokenizer spells them.
    """
    if not tokens:
        return text
    pattern = _pattern(tokens)
    # Words that come out of one token may stand in the brackets of another: "[s[it]ing]".
    while True:
        spoken = pattern.sub(lambda found: _words(found.group(1)), text)
        if spoken == text:
            return text
        text = spoken


@lru_cache(maxsize=16)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    # With the brackets around it, of which there may be several: "[[it]]" would become a token again.
    return re.compile(rf"[\[<]*({_either(sorted(tokens, key=len, reverse=True))})[\]>]*")


def _either(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


def _words(token: str) -> str:
    return re.sub(r"[\W_]+", " ", token).strip()
