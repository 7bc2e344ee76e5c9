"""Pieces of about the ideal length: sentences joined, long ones cut."""

from __future__ import annotations

import itertools
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatterbox_vllm.text.breaks import Break, breaks
from chatterbox_vllm.text.characters import is_unspaced
from chatterbox_vllm.text.special_tokens import Span, spans_of

# What pieces aim at, as a share of the longest: long enough for sentences to sound connected, room to cut well.
_IDEAL_SHARE = 0.8
# Cost of a cut, in the unit of a piece's squared relative distance from the ideal length. A piece of half that length
# costs 0.25; so a paragraph of that length stays by itself, while short lines of a dialogue are spoken together.
_COST = {
    Break.WORD: 1.0,
    Break.CLAUSE: 0.5,
    Break.SENTENCE: 0.0,
    Break.PARAGRAPH: -0.3,
    Break.HEADING: -0.3,
    Break.SCENE: -0.3,
}
# Units shorter than this share of a piece are joined to the next at once, which bounds the time for texts of nothing
# but "Oh!".
_LEAST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Unit:
    """What is never cut further.

    Attributes:
        end: what ends with it.
        glue: what stands between it and the next unit of its piece.
    """

    text: str
    end: Break
    glue: str


def units(
    paragraph: str,
    final: Break,
    glue: str,
    longest: int,
    language: str | None = None,
    tags: frozenset[str] = frozenset(),
) -> Iterator[Unit]:
    """A paragraph's sentences; those too long in clauses; and those too long in runs of words.

    Args:
        paragraph: its white space is single spaces, none at its ends.
        final, glue: of the last unit.
        language: ISO 639-1; None is English.
        tags: what is never cut inside, unless it is longer than a piece.
    """
    spans = spans_of(paragraph, tags)
    places = [place for place in breaks(paragraph, language) if _span_around(spans, place[0]) is None]
    whole = len(paragraph)
    if not places and whole <= longest:
        yield Unit(paragraph, final, glue)
        return
    clauses = [place for place, _ in places]
    sentences = [place for place, kind in places if kind == Break.SENTENCE and place < whole]

    def unit(start: int, end: int, kind: Break) -> Unit:
        if end == whole:
            return Unit(paragraph[start:], final, glue)
        return Unit(paragraph[start:end], kind, " " if paragraph[end] == " " else "")

    start = 0
    for end in (*sentences, whole):
        start += paragraph[start] == " "
        inner: list[int] = []
        if end - start > longest:
            inner = clauses[bisect_left(clauses, start + 1) : bisect_left(clauses, end)]
        for stop in (*inner, end):
            start += paragraph[start] == " "
            for cut in _chop(paragraph, start, stop, longest, spans):
                yield unit(start, cut, Break.WORD)
                start = cut + (paragraph[cut] == " ")
            yield unit(start, stop, Break.SENTENCE if stop == end else Break.CLAUSE)
            start = stop


def balance(parts: Sequence[Unit], longest: int) -> list[tuple[str, Break]]:
    """Join neighbours to pieces: of all ways, the cheapest (dynamic programming over the ends of pieces).

    Returns:
        Each piece, at most `longest` characters where its units are, and what ends with it.
    """
    ideal = max(1.0, _IDEAL_SHARE * longest)
    parts = _without_scraps(parts, longest)
    lengths = [len(unit.text) for unit in parts]
    # Where each unit begins, if all were joined.
    places = [0, *itertools.accumulate(len(unit.text) + len(unit.glue) for unit in parts)]
    cheapest, begins = [0.0], [0]
    for end, unit in enumerate(parts, start=1):
        begin = end - 1
        stop = places[begin] + lengths[begin]
        best = cheapest[begin] + (1 - lengths[begin] / ideal) ** 2
        for first in range(end - 2, -1, -1):
            length = stop - places[first]
            if length > longest:
                break
            cost = cheapest[first] + (1 - length / ideal) ** 2
            if cost < best:
                best, begin = cost, first
        cheapest.append(best + _COST[unit.end])
        begins.append(begin)
    pieces = []
    end = len(parts)
    while end:
        begin = begins[end]
        joined = "".join(unit.text + unit.glue for unit in parts[begin : end - 1])
        pieces.append((joined + parts[end - 1].text, parts[end - 1].end))
        end = begin
    return pieces[::-1]


def _without_scraps(parts: Sequence[Unit], longest: int) -> Sequence[Unit]:
    least = _LEAST_SHARE * longest
    if all(len(unit.text) >= least for unit in parts):
        return parts
    joined: list[Unit] = []
    for unit in parts:
        if joined and len(joined[-1].text) < least:
            text = joined[-1].text + joined[-1].glue + unit.text
            if len(text) <= longest:
                joined[-1] = Unit(text, unit.end, unit.glue)
                continue
        joined.append(unit)
    return joined


def _chop(text: str, start: int, end: int, longest: int, spans: Sequence[Span]) -> Iterator[int]:
    """Where to cut `text[start:end]` so that parts fit and are about equal."""
    while end - start > longest:
        parts = -(-(end - start) // longest)
        aim = start + -(-(end - start) // parts)
        anywhere = is_unspaced(text[aim - 1]) and is_unspaced(text[aim])
        cut = aim if anywhere else _nearest_space(text, start, aim, longest)
        if cut is None:
            cut = aim
        if text[cut] != " ":
            cut = _whole_character(text, start, cut)
        if (around := _span_around(spans, cut)) is not None:
            cut = _beside(text, start, cut, around, longest)
        yield cut
        start = cut + (text[cut] == " ")


def _nearest_space(text: str, start: int, aim: int, longest: int) -> int | None:
    before = text.rfind(" ", start + 1, aim + 1)
    after = text.find(" ", aim + 1, start + longest + 1)
    if before < 0 or after < 0:
        return max(before, after) if max(before, after) > 0 else None
    return before if aim - before <= after - aim else after


def _whole_character(text: str, start: int, cut: int) -> int:
    """`cut`, moved back where it would part a base character from its marks; not further than a few characters."""
    for place in range(cut, max(start, cut - 8), -1):
        if not unicodedata.category(text[place]).startswith("M") and "\u200d" not in text[place - 1 : place + 1]:
            return place
    return cut


def _span_around(spans: Sequence[Span], cut: int) -> Span | None:
    """The span that a cut would part."""
    place = bisect_left(spans, (cut,)) - 1
    return spans[place] if place >= 0 and spans[place][1] > cut else None


def _beside(text: str, start: int, cut: int, span: Span, longest: int) -> int:
    """`cut`, moved before a span; or behind it, where the piece begins with it and has room for it."""
    first, last = span
    if first > start:
        return first - (text[first - 1] == " " and first - 1 > start)
    return last if last - start <= longest else cut
