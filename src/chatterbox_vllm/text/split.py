"""Texts of any length to pieces of the length that the model speaks well."""

from __future__ import annotations

from dataclasses import dataclass

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.balance import balance, units
from chatterbox_vllm.text.breaks import Break
from chatterbox_vllm.text.languages.rules import rules_of
from chatterbox_vllm.text.layout import read_layout, sections
from chatterbox_vllm.text.pauses import Pauses

# Characters of a piece in English; `rules_of` knows other languages'.
LONGEST = rules_of(None).longest


@dataclass(frozen=True)
class Segment:
    """A piece of a text.

    Attributes:
        text: never empty.
        pause: seconds of silence after this piece.
        before: seconds of silence before it; above 0 only for the first piece of a text that begins with a pause.
        starts_sentence: False where it goes on with what the piece before began.
        ends_sentence: False where it ends between two words of a clause.
    """

    text: str
    pause: float
    before: float = 0.0
    starts_sentence: bool = True
    ends_sentence: bool = True


def split_text(text: str, longest: int = LONGEST, language: str | None = None) -> list[Segment]:
    """Cut a text into pieces of at most `longest` characters, every character kept: the cutting alone.

    What users bring is read by `chatterbox_vllm.text.script.read_script`, which cuts likewise.

    A text that fits is one piece, unchanged. Otherwise cuts fall at headings and ends of paragraphs (empty lines), and
    then, in this order of preference, on ends of sentences, clauses, words, and inside a word only where it is longer
    than a piece; scripts without spaces are cut between characters. Pieces are balanced: of all ways to cut, that with
    the least sum of squared distances from the ideal length and of costs of weak cuts. All characters but white space
    are kept, in their order; white space is collapsed. Time is linear in the text's length.

    Args:
        longest: most characters of a piece, at least 1.
        language: ISO 639-1; None is English.

    Returns:
        The pieces in order, the last without a pause; none for a text of white space.

    Raises:
        ConfigError: `longest` is below 1.
    """
    require_room(longest)
    if not text or text.isspace():
        return []
    if len(text) <= longest:
        return [Segment(text, 0.0)]
    pauses = Pauses()
    pieces: list[tuple[str, Break]] = []
    for paragraphs, end in sections(read_layout(text)):
        parts = [
            unit
            for paragraph in paragraphs
            for unit in units(" ".join(paragraph.lines), paragraph.end, " ", longest, language)
        ]
        *others, (last, _) = balance(parts, longest)
        pieces += [*others, (last, end)]
    before = Break.SENTENCE
    segments: list[Segment] = []
    for piece, end in pieces:
        segments.append(
            Segment(
                piece,
                pauses.after(end) if len(segments) < len(pieces) - 1 else 0.0,
                starts_sentence=before >= Break.SENTENCE,
                ends_sentence=end != Break.WORD,
            )
        )
        before = end
    return segments


def require_room(longest: int) -> None:
    """Refuse pieces of no length.

    Raises:
        ConfigError: `longest` is below 1.
    """
    if longest < 1:
        raise ConfigError(f"the longest piece must have at least 1 character, not {longest}")
