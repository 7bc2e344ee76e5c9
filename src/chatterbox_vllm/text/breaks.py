"""Where sentences and clauses end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum


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
# What a full stop abbreviates.
_ABBREVIATION = re.compile(
    r"""
    (?:\w\.)+\w?  # U.S, e.g, p.m
    | mr|mrs|ms|mx|messrs|mme|mlle|dr|prof|rev|fr|hon|st|sr|jr|gen|col|maj|capt|cmdr|lt|sgt|cpl|pvt|adm|gov|sen|rep
    | vs|cf|al|etc|viz|approx|est|ft|oz|lbs?|mt|ave|blvd|rd|eds?|inc|ltd|co|corp|bros|dept|univ
    | jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thur?s?|fri
    | bzw|usw|ca|tel|evtl|ggf|sra|sres|uds?
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Before a number only; else they are words.
_BEFORE_NUMBER = re.compile("nos?|vols?|ch|chap|sec|figs?|pp?|nr|art|min|max", re.IGNORECASE)
# These end a sentence as often as not: an end where a capital follows.
_EITHER_WAY = re.compile("etc|inc|ltd|co|corp|jr|sr|bros", re.IGNORECASE)


def end_of(text: str) -> Break:
    """What ends where a text ends: a sentence, a clause (also at a dash), or a word without any mark."""
    mark = text.rstrip(_CLOSERS + MARK + " ")[-1:]
    if not mark:
        return Break.WORD
    if mark in _STOPS + _WIDE_STOPS:
        return Break.SENTENCE
    return Break.CLAUSE if mark in _COMMAS + _WIDE_COMMAS + "-–" else Break.WORD


def breaks(paragraph: str) -> Iterator[tuple[int, Break]]:
    """Places after which a clause or a sentence ends, in order."""
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
        elif following and not following.startswith(" "):
            continue  # 3.14, 10:30, example.com, 1,000
        elif mark not in _STOPS:
            kind = Break.CLAUSE
        elif mark == "." and found.group()[1:2] != "." and _abbreviates(paragraph, sentence, found.start(), following):
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


def _abbreviates(paragraph: str, sentence: int, dot: int, following: str) -> bool:
    """Whether the full stop at `dot` is part of its word. In doubt it is: a cut that is not made does no harm."""
    word = _word_before(paragraph, dot)
    if len(word) == 1 and word.isalpha():
        # An initial; but "I" is a word too, unless another initial stands before it.
        return word != "I" or paragraph[max(0, dot - 3) : dot - 1] in (". ", ".")
    if word.isdigit() and len(word) <= 3:
        return dot - len(word) <= sentence + 1  # the number of a heading or list entry
    if _BEFORE_NUMBER.fullmatch(word):
        return following[1:].isdigit()
    if _EITHER_WAY.fullmatch(word) and following[1:].isupper():
        return False
    return _ABBREVIATION.fullmatch(word) is not None
