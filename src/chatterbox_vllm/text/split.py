"""Texts of any length to pieces of the length that the model speaks well."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from chatterbox_vllm.errors import ConfigError

# Characters of a piece. English is spoken at about 15 characters a second, so this is some 20 s: half of the 1000
# speech tokens that the published model may speak at once, which leaves room for slow voices.
LONGEST = 300
# What pieces aim at, as a share of the longest: long enough for sentences to sound connected, room to cut well.
_IDEAL_SHARE = 0.8


@dataclass(frozen=True)
class Segment:
    """A piece of a text.

    Attributes:
        text: never empty.
        pause: seconds of silence between this piece and the next, 0 for the last.
    """

    text: str
    pause: float


class _Break(IntEnum):
    """What ends at a place where a text may be cut, the weakest first."""

    WORD = 0
    CLAUSE = 1
    SENTENCE = 2
    PARAGRAPH = 3
    HEADING = 4  # a paragraph without a full stop: what follows must not run into it


# Silences of a calm reader, by ear: a breath after a sentence, a longer one after a paragraph. Inside a clause there is
# none, as the cut is no part of the text.
_PAUSE = {
    _Break.WORD: 0.0,
    _Break.CLAUSE: 0.15,
    _Break.SENTENCE: 0.35,
    _Break.PARAGRAPH: 0.7,
    _Break.HEADING: 0.7,
}
# Cost of a cut, in the unit of a piece's squared relative distance from the ideal length. A piece of half that length
# costs 0.25; so a paragraph of that length stays by itself, while short lines of a dialogue are spoken together.
_COST = {
    _Break.WORD: 1.0,
    _Break.CLAUSE: 0.5,
    _Break.SENTENCE: 0.0,
    _Break.PARAGRAPH: -0.3,
    _Break.HEADING: -1.2,
}
# Most units in a piece: bounds the time for texts of nothing but "Oh! Ah!".
_MOST_UNITS = 40
# No text is wrapped to longer lines than this.
_WIDEST_WRAP = 100

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


def split_text(text: str, longest: int = LONGEST) -> list[Segment]:
    """Cut a text into pieces of at most `longest` characters.

    A text that fits is one piece, unchanged. Otherwise cuts fall, in this order of preference, on ends of paragraphs
    (empty lines), sentences, clauses, words, and inside a word only where it is longer than a piece; scripts without
    spaces are cut between characters. Pieces are balanced: of all ways to cut, that with the least sum of squared
    distances from the ideal length and of costs of weak cuts. All characters but white space are kept, in their order;
    white space is collapsed. Time is linear in the text's length.

    Args:
        longest: most characters of a piece, at least 1.

    Returns:
        The pieces in order; none for a text of white space.

    Raises:
        ConfigError: `longest` is below 1.
    """
    if longest < 1:
        raise ConfigError(f"the longest piece must have at least 1 character, not {longest}")
    if not text or text.isspace():
        return []
    if len(text) <= longest:
        return [Segment(text, 0.0)]
    units = [unit for paragraph, end in _paragraphs(text) for unit in _units(paragraph, end, longest)]
    pieces = _balance(units, longest)
    last = len(pieces) - 1
    return [Segment(piece, _PAUSE[end] if i < last else 0.0) for i, (piece, end) in enumerate(pieces)]


@dataclass(frozen=True)
class _Unit:
    """What is never cut further. `space` says whether white space follows it."""

    text: str
    end: _Break
    space: bool


def _paragraphs(text: str) -> Iterator[tuple[str, _Break]]:
    """Paragraphs, white space collapsed, and what their ends are."""
    block: list[str] = []
    for line in text.replace("\u2029", "\n\n").splitlines():
        words = " ".join(line.split())
        if words:
            block.append(words)
        elif block:
            yield from _unwrapped(block)
            block = []
    if block:
        yield from _unwrapped(block)


def _unwrapped(lines: list[str]) -> Iterator[tuple[str, _Break]]:
    """The paragraphs in a block of lines between empty ones.

    A line break is mere wrapping where the next word would have made its line longer than the longest one.
    """
    width = max(map(len, lines))
    wrapped = width <= _WIDEST_WRAP
    paragraph = [lines[0]]
    for line in lines[1:]:
        if wrapped and len(paragraph[-1]) + 1 + len(line.partition(" ")[0]) > width:
            paragraph.append(line)
            continue
        # Short lines without a full stop are verse, or headings where the others are long.
        yield _ended(paragraph, _Break.SENTENCE if wrapped else _Break.HEADING)
        paragraph = [line]
    yield _ended(paragraph, _Break.HEADING)


def _ended(lines: list[str], otherwise: _Break) -> tuple[str, _Break]:
    paragraph = " ".join(lines)
    stopped = paragraph.rstrip(_CLOSERS)[-1:] or " "
    return paragraph, _Break.PARAGRAPH if stopped in _STOPS + _WIDE_STOPS else otherwise


def _units(paragraph: str, final: _Break, longest: int) -> Iterator[_Unit]:
    """A paragraph's sentences; those too long in clauses; and those too long in runs of words."""
    breaks = list(_breaks(paragraph))
    whole = len(paragraph)
    clauses = [place for place, _ in breaks]
    sentences = [place for place, kind in breaks if kind == _Break.SENTENCE and place < whole]

    def unit(start: int, end: int, kind: _Break) -> _Unit:
        if end == whole:
            return _Unit(paragraph[start:], final, True)
        return _Unit(paragraph[start:end], kind, paragraph[end] == " ")

    start = 0
    for end in (*sentences, whole):
        start += paragraph[start] == " "
        inner: list[int] = []
        if end - start > longest:
            inner = clauses[bisect_left(clauses, start + 1) : bisect_left(clauses, end)]
        for stop in (*inner, end):
            start += paragraph[start] == " "
            for cut in _chop(paragraph, start, stop, longest):
                yield unit(start, cut, _Break.WORD)
                start = cut + (paragraph[cut] == " ")
            yield unit(start, stop, _Break.SENTENCE if stop == end else _Break.CLAUSE)
            start = stop


def _breaks(paragraph: str) -> Iterator[tuple[int, _Break]]:
    """Places after which a clause or a sentence ends, in order."""
    sentence = 0
    for found in _CANDIDATE.finditer(paragraph):
        mark, end = found.group()[0], found.end()
        following = paragraph[end : end + 2]
        if mark in _WIDE_STOPS or mark in _WIDE_COMMAS:
            # A quotation that its sentence goes on after: 「…。」と.
            stop = mark in _WIDE_STOPS and not (found.group()[-1] in "」』" and following[:1] in ("と", "っ"))
            kind = _Break.SENTENCE if stop else _Break.CLAUSE
            # One end is enough where marks of both kinds follow each other.
            if following and following[0] in _STOPS + _WIDE_STOPS + _WIDE_COMMAS + _CLOSERS:
                continue
            if mark == "．" and following[:1].isdigit():
                continue
        elif following and not following.startswith(" "):
            continue  # 3.14, 10:30, example.com, 1,000
        elif mark not in _STOPS:
            kind = _Break.CLAUSE
        elif mark == "." and found.group()[1:2] != "." and _abbreviates(paragraph, sentence, found.start(), following):
            continue
        else:
            # "What?" she said: the sentence goes on.
            kind = _Break.CLAUSE if following[1:].islower() else _Break.SENTENCE
        if kind == _Break.SENTENCE:
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


def _chop(text: str, start: int, end: int, longest: int) -> Iterator[int]:
    """Where to cut `text[start:end]` so that parts fit and are about equal."""
    while end - start > longest:
        parts = -(-(end - start) // longest)
        aim = start + -(-(end - start) // parts)
        cut = aim if _unspaced(text[aim - 1]) and _unspaced(text[aim]) else _nearest_space(text, start, aim, longest)
        if cut is None:
            cut = aim
        if text[cut] != " ":
            cut = _whole_character(text, start, cut)
        yield cut
        start = cut + (text[cut] == " ")


def _nearest_space(text: str, start: int, aim: int, longest: int) -> int | None:
    before = text.rfind(" ", start + 1, aim + 1)
    after = text.find(" ", aim + 1, start + longest + 1)
    if before < 0 or after < 0:
        return max(before, after) if max(before, after) > 0 else None
    return before if aim - before <= after - aim else after


def _unspaced(character: str) -> bool:
    """Of a script that puts no spaces between words: kana, Han, Thai, Lao, Khmer, Burmese."""
    code = ord(character)
    return (
        0x3040 <= code <= 0x30FF
        or 0x3400 <= code <= 0x9FFF
        or 0x20000 <= code <= 0x3FFFF
        or 0x0E00 <= code <= 0x0EFF
        or 0x1000 <= code <= 0x109F
        or 0x1780 <= code <= 0x17FF
    )


def _whole_character(text: str, start: int, cut: int) -> int:
    """`cut`, moved back where it would part a base character from its marks; not further than a few characters."""
    for place in range(cut, max(start, cut - 8), -1):
        if not unicodedata.category(text[place]).startswith("M") and "\u200d" not in text[place - 1 : place + 1]:
            return place
    return cut


def _balance(units: list[_Unit], longest: int) -> list[tuple[str, _Break]]:
    """Join neighbours to pieces: of all ways, the cheapest (dynamic programming over the ends of pieces)."""
    ideal = max(1.0, _IDEAL_SHARE * longest)
    cheapest, begins = [0.0], [0]
    for end in range(1, len(units) + 1):
        best, begin, length = float("inf"), end - 1, -1
        for first in range(end - 1, max(-1, end - 1 - _MOST_UNITS), -1):
            length += len(units[first].text) + 1  # a space between units, at most
            if length > longest and first < end - 1:
                break
            cost = cheapest[first] + (1 - length / ideal) ** 2
            if cost < best:
                best, begin = cost, first
        cheapest.append(best + _COST[units[end - 1].end])
        begins.append(begin)
    pieces = []
    end = len(units)
    while end:
        begin = begins[end]
        parts = [unit.text + " " * unit.space for unit in units[begin : end - 1]] + [units[end - 1].text]
        pieces.append(("".join(parts), units[end - 1].end))
        end = begin
    return pieces[::-1]
