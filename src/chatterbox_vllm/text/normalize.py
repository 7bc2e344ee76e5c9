"""Punctuation as the published models were trained on it."""

from __future__ import annotations

import re
import unicodedata
from functools import partial

from chatterbox_vllm.text.characters import part_small_digits
from chatterbox_vllm.text.spelling.abbreviations import spell_abbreviations
from chatterbox_vllm.text.spelling.amounts import spell_amounts
from chatterbox_vllm.text.spelling.times import spell_telephone_numbers, spell_times, spell_years

# Applied in this order: an em dash becomes a hyphen only after " - " has become a comma.
_REPLACEMENTS = (
    ("...", ", "),
    ("…", ", "),
    (":", ","),
    (" - ", ", "),
    (";", ", "),
    ("—", "-"),
    ("–", "-"),
    (" ,", ","),
    ("“", '"'),
    ("”", '"'),
    ("‘", "'"),
    ("’", "'"),
)
_REPLACEMENTS_TURBO = tuple(pair for pair in _REPLACEMENTS if pair[0] not in ("...", " - ", ";"))
_ENDINGS = (".", "!", "?", "-", ",")
_EAST_ASIAN_ENDINGS = ("、", "，", "。", "？", "！")
_CLOSERS = "\"')]"


def normalize_punctuation(
    text: str,
    *,
    starts_sentence: bool = True,
    ends_sentence: bool = True,
    replacements: tuple[tuple[str, str], ...] = _REPLACEMENTS,
    endings: tuple[str, ...] = _ENDINGS,
) -> str:
    """Upper-case the first letter, collapse white space, replace rare punctuation, make sure the text ends in some.

    The published model says a sentence of its own for an empty text, which is kept here for parity; callers that take
    text from users refuse it before (`chatterbox_vllm.text.script`).

    Args:
        starts_sentence: False for a piece that goes on with a sentence: its first letter stays as it is.
        ends_sentence: False for a piece that was cut between two words: it ends in a comma in place of a full stop, as
            the model knows no text without a mark at its end.
        replacements: one after the other.
        endings: marks that a text may end in.
    """
    if not text:
        return "You need to add some text for me to talk."
    if starts_sentence and text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for old, new in replacements:
        text = text.replace(old, new)
    text = text.rstrip(" ")
    if text.endswith(endings):
        return text
    if ends_sentence:
        return text + "."
    return text if text.rstrip(_CLOSERS).endswith(endings) else text + ","


# Between words, as a dash is and not a minus: with white space on both sides, behind it, or before it.
_DASH = re.compile(
    r"(?<=[^\d ]) -+ | -+ (?=[^\d ])|(?<=[^\d ])-+ (?=\D)|(?<=\S) -+(?=[^\d -])",
)
# Inside a word; not between two numbers.
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=\w)|(?<=\d)-(?=[^\W\d_])")
_BETWEEN_NUMBERS = re.compile(r"(?<=\d)-(?=\d)")
_COMPARISON = re.compile(r"(?<=\d )([<>])(?= \d)")
_PLAIN = str.maketrans("\N{FRACTION SLASH}–—“”‘’", "/--\"\"''")
_COMPARED = {"<": "is less than", ">": "is greater than"}


def normalize_spelled_out(text: str, *, starts_sentence: bool = True, ends_sentence: bool = True) -> str:
    """For Flash, whose texts keep their case and marks, and say in letters what others say in digits and abbreviations.

    A dash between words becomes a comma, and a hyphen inside a word a space. Curly quotes, which the tokenizer lacks,
    become straight.

    Args:
        starts_sentence: of no effect.
        ends_sentence: of no effect.
    """
    text = spell_abbreviations(" ".join(unicodedata.normalize("NFKC", part_small_digits(text)).split()))
    text = text.translate(_PLAIN)
    text = _BETWEEN_NUMBERS.sub(" - ", _HYPHEN.sub(" ", _DASH.sub(", ", text)))
    text = _COMPARISON.sub(lambda found: _COMPARED[found[1]], text)
    return spell_amounts(spell_years(spell_telephone_numbers(spell_times(text))))


# For Turbo and Nano, which know three full stops, a semicolon and a dash between words.
normalize_punctuation_turbo = partial(normalize_punctuation, replacements=_REPLACEMENTS_TURBO)
# For the multilingual models, whose texts may end in an East Asian mark.
normalize_any_punctuation = partial(normalize_punctuation, endings=_ENDINGS + _EAST_ASIAN_ENDINGS)
