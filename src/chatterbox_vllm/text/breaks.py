"""Where sentences and clauses end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum

from chatterbox_vllm.text.characters import is_unspaced
from chatterbox_vllm.text.languages.rules import LanguageRules, rules_of
from chatterbox_vllm.text.writing_systems import writing_system


class Break(IntEnum):
    """What ends at a place where a text may be cut, the weakest first."""

    WORD = 0
    CLAUSE = 1
    SENTENCE = 2
    PARAGRAPH = 3
    HEADING = 4
    SCENE = 5


# Stands for a pause that the text asks for, while it is read. It is of Unicode's private use, which tidied texts lack.
MARK = "\ue000"

# Scripts that put spaces between words, and those that do not; closing marks stay with what they close.
_STOPS = ".!?…؟۔।॥።፧။։។៕⁇⁈⁉‽"
_WIDE_STOPS = "。！？｡．"
_COMMAS = ",;:،؛၊፣፤"
_WIDE_COMMAS = "、，；：—"
_CLOSERS = "\"'”’»›)]}」』）】》〉］｝*_"
_CANDIDATE = re.compile(
    # {1,8}: marks in greater number are no punctuation; bounded, so that no text makes this slow.
    f"[{re.escape(_STOPS + _WIDE_STOPS)}]{{1,8}}[{re.escape(_CLOSERS)}]{{0,4}}"
    f"|[{re.escape(_COMMAS + _WIDE_COMMAS)}][{re.escape(_CLOSERS)}]{{0,4}}"
    r"|(?<= )[-–](?= )"
)
_LAST_WORD = re.compile(r"[^\s(\[{\"'“‘«—-]*$")
_WORD_CONTEXT = 24
# Before a number only; else they are words.
_BEFORE_NUMBER = re.compile("nos?|vols?|ch|chap|sec|figs?|pp?|nr|art|min|max", re.IGNORECASE)
# These end a sentence as often as not: an end where a capital follows.
_EITHER_WAY = re.compile("etc|inc|ltd|co|corp|jr|sr|bros", re.IGNORECASE)


def end_of(text: str) -> Break:
    """What ends where a text ends: a sentence, a clause (also at a dash), or a word without any mark."""
    said = text.rstrip(_CLOSERS + MARK + " ")
    mark = said[-1:]
    if not mark:
        return Break.WORD
    if mark in _STOPS + _WIDE_STOPS or _asks_in_greek(said, len(said) - 1):
        return Break.SENTENCE
    return Break.CLAUSE if mark in _COMMAS + _WIDE_COMMAS + "-–" else Break.WORD


def breaks(paragraph: str, language: str | None = None) -> Iterator[tuple[int, Break]]:
    """Places after which a clause or a sentence ends, in order.

    Args:
        language: ISO 639-1, for what a full stop can mean beside the end of a sentence; None is English.
    """
    rules = rules_of(language)
    sentence = 0
    for found in _CANDIDATE.finditer(paragraph):
        mark, end = found.group()[0], found.end()
        following = paragraph[end : end + 2]
        if mark in _WIDE_STOPS or mark in _WIDE_COMMAS:
            # A quotation that its sentence goes on after: 「…。」と.
            stop = mark in _WIDE_STOPS and not (found.group()[-1] in "」』" and following[:1] in ("と", "っ"))
            kind = Break.SENTENCE if stop else Break.CLAUSE
            # One end is enough where marks of both kinds follow each other.
            if following and following[0] in _STOPS + _WIDE_STOPS + _WIDE_COMMAS + _CLOSERS:
                continue
            if mark == "．" and following[:1].isdigit():
                continue
        elif following and not following.startswith(" ") and not _between_unspaced(paragraph, found.start(), end):
            continue  # 3.14, 10:30, example.com, 1,000
        elif mark not in _STOPS and not _asks_in_greek(paragraph, found.start()):
            kind = Break.CLAUSE
        elif mark == "." and found.group()[1:2] != "." and _abbreviates(paragraph, sentence, found, rules):
            continue
        else:
            # "What?" she said: the sentence goes on.
            kind = Break.CLAUSE if following[1:].islower() else Break.SENTENCE
        if kind == Break.SENTENCE:
            sentence = end
        yield end, kind


def _word_before(paragraph: str, dot: int) -> str:
    found = _LAST_WORD.search(paragraph[max(0, dot - _WORD_CONTEXT) : dot])
    return found.group() if found else ""


def _asks_in_greek(text: str, place: int) -> bool:
    """Whether a semicolon is Greek's question mark."""
    return text[place] == ";" and place > 0 and writing_system(text[place - 1]) == "Greek"


def _between_unspaced(paragraph: str, start: int, end: int) -> bool:
    """Whether ASCII marks stand between two characters of scripts without spaces, as in a chat: "好!我"."""
    return start > 0 and is_unspaced(paragraph[start - 1]) and is_unspaced(paragraph[end])


def _abbreviates(paragraph: str, sentence: int, found: re.Match[str], rules: LanguageRules) -> bool:
    """Whether a full stop is part of its word. In doubt it is: a cut that is not made does no harm."""
    dot = found.start()
    following = paragraph[found.end() : found.end() + 2]
    word = _word_before(paragraph, dot)
    if len(word) == 1 and (word.isupper() or word.islower()):
        # An initial; but "I" is a word too, unless another initial stands before it.
        return word != "I" or paragraph[max(0, dot - 3) : dot - 1] in (". ", ".")
    if word.isdigit() and len(word) <= 3:
        # The number of a heading or list entry, or a day.
        return dot - len(word) <= sentence + 1 or (rules.ordinals and len(word) <= 2)
    if _BEFORE_NUMBER.fullmatch(word):
        return following[1:].isdigit()
    if _EITHER_WAY.fullmatch(word) and following[1:].isupper():
        return False
    return rules.abbreviation.fullmatch(word) is not None
