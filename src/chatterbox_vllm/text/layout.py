"""What the lines of a text mean: paragraphs, wrapped or not, lines of verse and of lists, headings, scene breaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from chatterbox_vllm.text.breaks import Break, end_of
from chatterbox_vllm.text.characters import has_words
from chatterbox_vllm.text.headings import (
    is_capitals,
    is_heading,
    is_marked_heading,
    is_number_alone,
    opens_chapter,
)
from chatterbox_vllm.text.lines import is_broken, item_mark

# Nobody wraps prose to longer or shorter lines than these.
_WIDEST_WRAP = 100
_NARROWEST_WRAP = 30
# Two lines prove little: the longer one had no room of necessity.
_NARROWEST_PAIR = 50
# Lines that have no more words on average are a list.
_LIST_WORDS = 3
# Lines of a dialogue and entries of a list that are shorter than this are spoken together, empty lines between or not.
_SHORT = 60
_COMMAS = tuple(",;،؛，、；")
_SPEECH_MARKS = "\"'“‘«„‹–—-"


class Kind(Enum):
    PROSE = auto()
    LINE = auto()  # of a list or of verse: it has no mark at its end and stands by itself
    HEADING = auto()
    CHAPTER = auto()  # a heading that always begins a piece
    ORNAMENT = auto()  # no letter or digit: a scene break


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Lines that belong together.

    Attributes:
        lines: at least one; white space is collapsed.
        closed: an empty line or the like follows, so that a cut is due.
    """

    kind: Kind
    lines: tuple[str, ...]
    closed: bool

    @property
    def is_heading(self) -> bool:
        return self.kind in (Kind.HEADING, Kind.CHAPTER)

    @property
    def end(self) -> Break:
        """What ends with it, where the next is spoken in the same breath."""
        if self.is_heading:
            return Break.HEADING
        return Break.SENTENCE if self.kind == Kind.LINE else Break.PARAGRAPH

    @property
    def is_short(self) -> bool:
        """Whether it is a short line of a dialogue, or a short entry of a list."""
        first = self.lines[0]
        return len(self.lines) == 1 and len(first) <= _SHORT and (first[0] in _SPEECH_MARKS or bool(item_mark(first)))


def read_layout(text: str) -> Iterator[Paragraph]:
    """The paragraphs of a text, in order. All their characters but white space are the text's."""
    block: list[str] = []
    for raw in text.replace("\u2029", "\n\n").splitlines():
        line = " ".join(raw.split())
        if not line:
            if block:
                yield from _block(block)
                block = []
        elif has_words(line):
            block.append(line)
        elif len(block) == 1 and _underlines(line, block[0]):
            yield Paragraph(_heading(block[0]), (block[0], line), True)
            block = []
        else:
            yield from _block(block)
            yield Paragraph(Kind.ORNAMENT, (line,), True)
            block = []
    yield from _block(block)


def sections(paragraphs: Iterable[Paragraph]) -> Iterator[tuple[list[Paragraph], Break]]:
    """Paragraphs that may share a piece of speech, and what ends after them."""
    section: list[Paragraph] = []
    for paragraph in paragraphs:
        if section:
            end = _cut(section[-1], paragraph)
            if end is not None:
                yield section, end
                section = []
        section.append(paragraph)
    if section:
        yield section, Break.PARAGRAPH


def _cut(before: Paragraph, after: Paragraph) -> Break | None:
    """What ends between two paragraphs that must not share a piece; None where they may."""
    if Kind.ORNAMENT in (before.kind, after.kind):
        return Break.SCENE
    headings = before.is_heading
    if after.kind == Kind.CHAPTER or headings != after.is_heading:
        return Break.HEADING
    # A chapter and its title, a title page.
    if headings or not before.closed:
        return None
    alike = before.is_short and after.is_short and item_mark(before.lines[0]) == item_mark(after.lines[0])
    return None if alike else Break.PARAGRAPH


def _underlines(line: str, above: str) -> bool:
    if len(line) < 3 or line != line[0] * len(line) or line[0] not in "=-~_^*":
        return False
    # Under prose it is a rule.
    return is_heading(above)


def _heading(line: str) -> Kind:
    return Kind.CHAPTER if opens_chapter(line) or is_number_alone(line) else Kind.HEADING


def _block(lines: list[str]) -> Iterator[Paragraph]:
    """The paragraphs in lines between empty ones."""
    begin = 0
    shouted = all(map(is_capitals, lines))
    for i, line in enumerate(lines):
        # A heading follows a full stop or another heading; elsewhere it is prose that happens to be wrapped there.
        if i > begin and end_of(lines[i - 1]) != Break.SENTENCE:
            continue
        if is_marked_heading(line) and (opens_chapter(line) or not shouted or len(lines) == 1):
            yield from _paragraphs(lines[begin:i])
            yield Paragraph(_heading(line), (line,), True)
            begin = i + 1
    yield from _paragraphs(lines[begin:])


def _paragraphs(lines: list[str]) -> Iterator[Paragraph]:
    """The same for lines among which no heading is marked as such."""
    if len(lines) == 1 and item_mark(lines[0]) is None and is_heading(lines[0]):
        yield Paragraph(_heading(lines[0]), (lines[0],), True)
        return
    wrapping = _Wrapping(lines)
    begin = 0
    for i in range(1, len(lines) + 1):
        last = i == len(lines)
        if not last and wrapping.goes_on(i):
            continue
        own = tuple(lines[begin:i])
        begin = i
        if last or end_of(own[-1]) == Break.SENTENCE:
            yield Paragraph(Kind.PROSE, own, last or wrapping.wide)
        elif wrapping.wide:
            yield Paragraph(Kind.HEADING if len(own) == 1 and is_heading(own[0]) else Kind.PROSE, own, True)
        else:
            yield Paragraph(Kind.LINE, own, False)


class _Wrapping:
    """Which line breaks of a block are mere wrapping.

    A line break is, where the next word would have made its line longer than the longest one. Lines that all begin with
    a capital although there was room, or that hold two or three words, are verse or a list.
    """

    def __init__(self, lines: list[str]):
        self._lines = lines
        self._width = max(map(len, lines), default=0)
        self.wide = self._width > _WIDEST_WRAP
        self._items = self._entries()
        self._first_item = self._items.index(True) if True in self._items else len(lines)
        count = len(lines)
        self._narrow = self._width < (_NARROWEST_WRAP if count > 2 else _NARROWEST_PAIR)
        self._short = count > 2 and sum(line.count(" ") + 1 for line in lines) <= _LIST_WORDS * count
        capitals = count > 2 and not "".join(lines).isupper() and all(map(_begins_anew, lines))
        spare = any(not self._full(i) for i in range(1, count) if end_of(lines[i - 1]) != Break.SENTENCE)
        self._apart = self._short or (capitals and spare)
        # Verse has commas at its lines' ends, so that a line without one goes on in the next.
        commas = sum(line.rstrip("\"'”’)")[-1:] in _COMMAS for line in lines[:-1])
        self._verse = self._apart and 4 * commas >= count

    def goes_on(self, i: int) -> bool:
        """Whether line `i` goes on with what line `i - 1` began."""
        line, following = self._lines[i - 1], self._lines[i]
        if self._items[i]:
            return False
        if is_broken(line, following):
            return True
        mark = end_of(line)
        if i > self._first_item and _first_letter(following).islower():
            return True
        if self._apart:
            return self._verse and mark == Break.WORD
        if _first_letter(following).islower() and mark != Break.SENTENCE:
            return True
        return not self.wide and not self._narrow and self._full(i)

    def _full(self, i: int) -> bool:
        """Whether line `i - 1` had no room for the first word of line `i`."""
        return len(self._lines[i - 1]) + 1 + len(self._lines[i].partition(" ")[0]) > self._width

    def _entries(self) -> list[bool]:
        """Which lines begin an entry of a list: the first line, one after a colon or a full stop, one like another."""
        seen: set[str] = set()
        entries = []
        for i, line in enumerate(self._lines):
            mark = item_mark(line)
            before = self._lines[i - 1] if i else "."
            entry = mark is not None and (mark in seen or end_of(before) == Break.SENTENCE or before.endswith(":"))
            if entry and mark is not None:
                seen.add(mark)
            entries.append(entry)
        return entries


def _first_letter(line: str) -> str:
    return next((character for character in line[:4] if character.isalnum()), "")


def _begins_anew(line: str) -> bool:
    first = _first_letter(line)
    return first.isupper() or first.isdigit()
