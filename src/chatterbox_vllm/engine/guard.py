"""Whether speech stays on its text, judged by the speech tokens alone.

A talker that has lost its way says the same over and over, goes on long after the text is said, or ends before most of
it is said. All three show in how many tokens there are for how much text, and in tokens that repeat. Bounds are wide:
what they catch is far from any speech that a listener would take for the text. Attention is looked at elsewhere, where
a model's heads for it are known (`t3/alignment.py`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from chatterbox_vllm.text.characters import is_unspaced
from chatterbox_vllm.text.writing_systems import writing_system

# How many tokens of speech lie between two looks, a second.
LOOK_EVERY = 25
# Speech tokens that a text may take: those of one word, and those of a letter more. Speech is usually at 1.3 to 1.7
# tokens a letter, and 13 to 35 in all for one word (520 texts of the small model); slow speech of 8 letters a second is
# at 3.1.
_WORD_TOKENS, _LETTER_TOKENS = 75, 4.0
_USUAL_WORD_TOKENS, _USUAL_LETTER_TOKENS = 12, 1.35
# The most that is still usual, 1.7 tokens a letter.
_EARLY = 1.26
# And those that it takes at least, 50 letters a second, where the text is longer than a word or two.
_LEAST_LETTER_TOKENS, _LEAST_LETTERS = 0.5, 25
# What a character is said in, in letters: "7" is "seven", "$" is "dollars", one of Chinese or of Hangul is a syllable.
# Of other scripts vowels are not written, or are no letters.
_DIGIT_LETTERS, _SIGN_LETTERS, _UNSPACED_LETTERS = 6, 8, 4
_SCRIPT_LETTERS = {"Hangul": 3, "Hebrew": 1.5, "Arabic": 1.5, "Devanagari": 2}
_SIGNS = frozenset("$€£¥%&@#+=°§*/\\<>~^|")
# Speech that repeats: with a period of up to 3 s, for three periods and 2 s at least. In those 520 texts no token was
# drawn more than 8 times in a row, and nothing else came again for longer than 3 tokens.
_LONGEST_PERIOD, _PERIODS, _LEAST_REPEATED = 75, 3, 50


# What may be wrong with what was said of a piece. "mute": it is nothing. "hasty": it is shorter than the text can be
# said in. "runaway": it repeats without an end, or is longer than the text can take.
Fault = Literal["mute", "hasty", "runaway"]


@dataclass(frozen=True)
class Bounds:
    """Speech tokens of a piece of text: at least, usually, and at most.

    Attributes:
        early: with so many or fewer an end may be too early, whatever its tokens look like.
    """

    least: int
    usual: float
    early: int
    most: int

    @classmethod
    def of(cls, text: str) -> Bounds:
        """Bounds for a piece of any language."""
        plain = sum(character.isalpha() for character in text)
        letters = sum(count * _letters(character) for character, count in Counter(text).items())
        least = _LEAST_LETTER_TOKENS * plain if plain >= _LEAST_LETTERS else 0
        usual = _USUAL_WORD_TOKENS + _USUAL_LETTER_TOKENS * letters
        return cls(int(least), usual, int(_EARLY * usual), int(_WORD_TOKENS + _LETTER_TOKENS * letters))


def _letters(character: str) -> float:
    if character.isdigit():
        return _DIGIT_LETTERS
    if character in _SIGNS:
        return _SIGN_LETTERS
    if is_unspaced(character):
        return _UNSPACED_LETTERS
    return 1 if character.isascii() else _SCRIPT_LETTERS.get(writing_system(character) or "", 1)


def end_before_repetition(tokens: list[int]) -> int | None:
    """Where to cut speech that has come to say the same over and over: behind the first of the repeated periods.

    Args:
        tokens: speech tokens, of which the last are looked at.

    Returns:
        How many tokens are left then; None where nothing is repeated at the end.
    """
    for period in range(1, min(_LONGEST_PERIOD, len(tokens) - 1) + 1):
        if tokens[-1] != tokens[-1 - period]:
            continue
        pairs = zip(reversed(tokens), reversed(tokens[:-period]), strict=False)
        repeated = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if repeated + period >= max(_LEAST_REPEATED, _PERIODS * period):
            return len(tokens) - repeated
    return None
