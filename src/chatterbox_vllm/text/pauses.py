"""Silences: how long they are by default, and those that a text asks for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.breaks import MARK, Break

# Of one pause, in seconds; a piece of speech is seldom longer.
LONGEST_PAUSE = 60.0
# Of all marks in a text together, in seconds, as each costs a few characters only.
_MOST_SILENCE = 3600.0
# "[pause button]" is a text like any other.
_BEGINNING = re.compile(r"\[\s*pause\s*(?:[:=]|(?=[\]\d.,+-]))", re.IGNORECASE)
_REST = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s*(ms|s)\s*\]", re.IGNORECASE)


@dataclass(frozen=True)
class Pauses:
    """Seconds of silence where a text is cut, each from 0 to 60. Those of a calm reader by default, by ear.

    Attributes:
        clause: after a comma or the like, where a sentence had to be cut.
        sentence: between sentences of a paragraph, and between lines of a list or of verse.
        paragraph: between paragraphs.
        heading: before and after a heading.
        scene: at a scene break ("* * *") and at other lines without a word.

    Raises:
        ConfigError: a value out of range or of the wrong type.
    """

    clause: float = 0.15
    sentence: float = 0.35
    paragraph: float = 0.7
    heading: float = 0.7
    scene: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # The comparison is false for NaN, too.
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LONGEST_PAUSE:
                raise ConfigError(
                    f"the pause {field.name!r} must be a number of seconds from 0 to {LONGEST_PAUSE:g}, not {value!r}"
                )

    def after(self, end: Break) -> float:
        """Seconds of silence at a cut of that kind; none between two words."""
        return 0.0 if end == Break.WORD else float(getattr(self, end.name.lower()))


DEFAULT_PAUSES = Pauses()


def take_marks(text: str) -> tuple[str, list[float]]:
    """A text with `MARK` in place of each "[pause:0.5s]" or "[pause:500ms]", and the pauses' lengths in seconds.

    Letter case and spaces do not matter.

    Raises:
        ConfigError: a mark that cannot be read, or is longer than 60 s; or an hour of them.
    """
    seconds: list[float] = []
    parts: list[str] = []
    done = 0
    for beginning in _BEGINNING.finditer(text):
        rest = _REST.match(text, beginning.end())
        if rest is None or beginning.group()[-1] not in ":=":
            shown = text[beginning.start() : beginning.start() + 30].partition("]")
            raise ConfigError(
                f"{shown[0] + shown[1]!r} at character {beginning.start()} is no pause that can be read; write it like "
                "[pause:0.5s] or [pause:500ms]"
            )
        length = float(rest.group(1)) / (1000 if rest.group(2).lower() == "ms" else 1)
        if length > LONGEST_PAUSE:
            raise ConfigError(
                f"{text[beginning.start() : rest.end()]!r} at character {beginning.start()} is longer than the longest "
                f"pause, {LONGEST_PAUSE:g} s; write a shorter one, or several"
            )
        seconds.append(length)
        parts += [text[done : beginning.start()], MARK]
        done = rest.end()
    total = math.fsum(seconds)
    if total > _MOST_SILENCE:
        raise ConfigError(
            f"the text's {len(seconds)} pauses are {total:g} s long together; there is room for {_MOST_SILENCE:g} s: "
            "cut the text in two"
        )
    return "".join(parts) + text[done:], seconds
