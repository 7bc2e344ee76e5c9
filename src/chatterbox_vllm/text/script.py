"""From what a user wrote to the pieces that are spoken, and the silences between them."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.balance import Unit, balance, units
from chatterbox_vllm.text.breaks import MARK, Break, end_of
from chatterbox_vllm.text.characters import has_words, require_encodable, tidy_characters
from chatterbox_vllm.text.clean import DEFAULT_CLEANING, Cleaning, clean_text, replace_emoji
from chatterbox_vllm.text.layout import Kind, Paragraph, read_layout, sections
from chatterbox_vllm.text.lines import join_lines, without_leaders, without_mark, without_ornaments
from chatterbox_vllm.text.pauses import DEFAULT_PAUSES, Pauses, take_marks
from chatterbox_vllm.text.special_tokens import speak_special_tokens
from chatterbox_vllm.text.split import LONGEST, Segment, require_room
from chatterbox_vllm.text.writing_systems import unsaid_letters, warn_of_unsaid_letters

# "Hello [pause:1s]." has its full stop behind the pause.
_MARK_BEFORE_PUNCTUATION = re.compile(
    rf"(?<=\w)(\s*{MARK}[\s{MARK}]{{0,100}})([.,;:!?…]{{1,4}}[\"'”’)]{{0,2}})(?=\s|$)"
)

# A scene break whose line breaks were lost: "went out. * * * The rain".
_INNER_SCENE_BREAK = re.compile(r"(?<=[.!?…\"”’)])[ \t]+(?:(?:\*[ \t]{0,3}){2,20}\*|[❦❧☙⁂✻✽]{1,20})[ \t]+(?=\S)")


def read_script(
    text: str,
    pauses: Pauses = DEFAULT_PAUSES,
    clean: bool | Cleaning = False,
    longest: int = LONGEST,
    *,
    special_tokens: frozenset[str] = frozenset(),
    tags: frozenset[str] = frozenset(),
    scripts: frozenset[str] | None = None,
    language: str | None = None,
) -> list[Segment]:
    """Read a text as a person would who is to read it aloud; docs/text.md says how.

    A text of one line that fits is one piece with exactly its characters, but for invisible ones and decomposed
    accents. Time is linear in the text's length, below a second for a megabyte.

    Args:
        pauses: seconds of silence where a text is cut. "[pause:0.5s]" in the text overrides them at its place.
        clean: make markdown, addresses, footnote marks and emoji fit to be spoken; True is `Cleaning()`.
        longest: most characters of a piece, at least 1.
        special_tokens: the tokenizer's control tokens, such as "[STOP]". Their words are spoken, they do not act.
        tags: the tokenizer's tags for sounds, such as "[clear throat]". No cut falls inside one that fits into a piece.
        scripts: what the model can say, in Unicode's names ("Latin"); None does not check.
        language: ISO 639-1; None is English.

    Returns:
        The pieces, at least one. Each has a letter or a digit and at most `longest` characters.

    Raises:
        ConfigError: there is no word to speak, half of a surrogate pair, a pause that cannot be read, a paragraph in a
            script that the model cannot say, or `longest` is below 1.
    """
    require_room(longest)
    require_encodable(text)
    cleaning = DEFAULT_CLEANING if clean is True else clean or None
    written = text
    if cleaning:
        text = replace_emoji(text, cleaning.emoji)
    text, marks = take_marks(_INNER_SCENE_BREAK.sub("\n\n***\n\n", tidy_characters(text)))
    if cleaning:
        text = clean_text(text, cleaning)
    _require_words(text, written)
    if not marks and len(text) <= longest and len(text.strip().splitlines()) == 1:
        text = speak_special_tokens(text.strip("\r\n"), special_tokens)
        _require_words(text, written)
        if scripts is not None:
            warn_of_unsaid_letters(unsaid_letters(text, scripts, language), scripts)
        return [Segment(text, 0.0)]
    script = _Script(pauses, longest, marks, language, tags)
    unsaid: Counter[str] = Counter()
    for paragraphs, end in sections(read_layout(_MARK_BEFORE_PUNCTUATION.sub(r"\2\1", text))):
        if paragraphs[0].kind == Kind.ORNAMENT:
            script.rest(paragraphs[0].lines[0].count(MARK))
            continue
        for paragraph in paragraphs:
            spoken = speak_special_tokens(_spoken(paragraph), special_tokens)
            if scripts is not None:
                unsaid.update(unsaid_letters(spoken, scripts, language))
            script.add(spoken, paragraph.end)
        script.cut(end)
    if scripts is not None:
        warn_of_unsaid_letters(dict(unsaid.most_common()), scripts)
    segments = script.finish()
    if not segments:
        _require_words("", written)
    return segments


def _require_words(text: str, written: str) -> None:
    if not has_words(text):
        shown = written if len(written) <= 40 else written[:40] + "…"
        raise ConfigError(f"there is no text to speak in {shown!r}; give at least one word")


def _spoken(paragraph: Paragraph) -> str:
    """A paragraph in one line, without what is there for the eye."""
    first, *others = (line for line in paragraph.lines if has_words(line))
    first = without_leaders(without_mark(first))
    return join_lines([without_ornaments(first) if paragraph.is_heading else first, *others])


class _Script:
    """Pieces and silences, as they come."""

    def __init__(self, pauses: Pauses, longest: int, marks: list[float], language: str | None, tags: frozenset[str]):
        self._pauses = pauses
        self._longest = longest
        self._language = language
        self._tags = tags
        self._marks = iter(marks)
        self._parts: list[Unit] = []
        self._segments: list[Segment] = []
        self._before = 0.0
        self._inside = False  # a sentence that the last piece began
        self._asked = False  # the text itself says how long the silence after the last piece is

    def add(self, paragraph: str, end: Break) -> None:
        """Speak a paragraph, with what comes next in the same breath if there is room."""
        parts = [part.strip() for part in paragraph.split(MARK)]
        last = max((k for k, part in enumerate(parts) if has_words(part)), default=0)
        for k, part in enumerate(parts):
            if has_words(part):
                mark = end_of(part)
                glue = ". " if mark == Break.WORD else " "
                self._parts += units(part, end if k == last else mark, glue, self._longest, self._language, self._tags)
            if k < len(parts) - 1:
                self.cut()
                self.rest(1)

    def cut(self, end: Break | None = None) -> None:
        """What was added last ends a piece; None: and no more than that ends with it."""
        if not self._parts:
            return
        *others, (last, own) = balance(self._parts, self._longest)
        for text, kind in (*others, (last, own if end is None else end)):
            self._append(text, kind)
        self._parts = []

    def rest(self, marks: int) -> None:
        """The next pauses that the text asks for, in place of those that its form asks for."""
        for seconds in itertools.islice(self._marks, marks):
            if not self._segments:
                self._before += seconds
                continue
            asked = self._segments[-1].pause if self._asked else 0.0
            self._segments[-1] = replace(self._segments[-1], pause=asked + seconds)
            self._asked = True

    def finish(self) -> list[Segment]:
        """All pieces. Nothing follows the last but a pause that the text asks for."""
        if self._segments:
            if not self._asked:
                self._segments[-1] = replace(self._segments[-1], pause=0.0)
            self._segments[0] = replace(self._segments[0], before=self._before)
        return self._segments

    def _append(self, text: str, end: Break) -> None:
        pause = self._pauses.after(end)
        if has_words(text):
            segment = Segment(text, pause, starts_sentence=not self._inside, ends_sentence=end != Break.WORD)
            self._segments.append(segment)
            self._asked = False
            self._inside = end <= Break.CLAUSE
        elif self._segments and not self._asked:
            # Marks without a word, cut off a very long run of them.
            self._segments[-1] = replace(self._segments[-1], pause=max(self._segments[-1].pause, pause))
