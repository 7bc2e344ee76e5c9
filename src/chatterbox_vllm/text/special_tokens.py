"""A tokenizer's control tokens and tags in what a user wrote."""

from __future__ import annotations

import re
from functools import lru_cache

Span = tuple[int, int]  # where something begins, and where it ends


def spans_of(text: str, tags: frozenset[str]) -> list[Span]:
    """Where tags stand in a text, in order, as a tokenizer finds them."""
    return [found.span() for found in _pattern(tags).finditer(text)] if tags else []


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
    while pattern.search(text):
        text = _spoken_once(text, pattern)
    return text


def _spoken_once(text: str, pattern: re.Pattern[str]) -> str:
    parts = []
    done = 0
    for found in pattern.finditer(text):
        start, end = found.span()
        # All brackets around it go: "[[it]]" would become a token again.
        while start > done and text[start - 1] in _OPENING:
            start -= 1
        parts += [text[done:start], re.sub(r"[\W_]+", " ", found.group()).strip()]
        while end < len(text) and text[end] in _CLOSING:
            end += 1
        done = max(done, end)
    return "".join(parts) + text[done:]


_OPENING, _CLOSING = "[<", "]>"


@lru_cache(maxsize=16)
def _pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
