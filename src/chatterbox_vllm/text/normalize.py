"""Punctuation as the published models were trained on it."""

from __future__ import annotations

from functools import partial

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


# For Turbo and Nano, which know three full stops, a semicolon and a dash between words.
normalize_punctuation_turbo = partial(normalize_punctuation, replacements=_REPLACEMENTS_TURBO)
# For the multilingual models, whose texts may end in an East Asian mark.
normalize_any_punctuation = partial(normalize_punctuation, endings=_ENDINGS + _EAST_ASIAN_ENDINGS)
