"""Punctuation as the published English model was trained on it."""

from __future__ import annotations

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
_ENDINGS = (".", "!", "?", "-", ",")


def normalize_punctuation(text: str) -> str:
    """Upper-case the first letter, collapse white space, replace rare punctuation, make sure the text ends in some.

    The published model says a sentence of its own for an empty text, which is kept here for parity; callers that take
    text from users refuse it before (`chatterbox_vllm.engine`).
    """
    if not text:
        return "You need to add some text for me to talk."
    if text[0].islower():
        text = text[0].upper() + text[1:]
    text = " ".join(text.split())
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    text = text.rstrip(" ")
    return text if text.endswith(_ENDINGS) else text + "."
