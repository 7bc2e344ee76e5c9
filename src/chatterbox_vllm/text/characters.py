"""Characters that are no speech: what editors, web pages and PDF files leave in a text."""

from __future__ import annotations

import re
import unicodedata

from chatterbox_vllm.errors import ConfigError

# A soft hyphen shows at a line's end only; the word goes on in the next line.
_SOFT_HYPHEN_AT_LINE_END = re.compile("\u00ad[ \t]*(?:\r\n|\n|\r)[ \t]*")
# Joiners are spelling in scripts from Arabic to Burmese, and invisible everywhere else.
_STRAY_JOINER = re.compile("(?<![\u0600-\u109f])[\u200c\u200d]|[\u200c\u200d](?![\u0600-\u109f])")
_JOINERS = "\u200c\u200d"
# Format characters that are seen: Arabic and Syriac number signs.
_SEEN_FORMATS = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Invisible ones that Unicode files under letters, marks and symbols: fillers, grapheme joiner, selectors, objects.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0\ufffc")
_LINE_BREAKS = {"\n": "\n", "\r": "\r", "\t": "\t", "\v": "\n", "\f": "\n", "\x85": "\n", "\u2028": "\n"}
_LINE_BREAKS["\u2029"] = "\n\n"
# Unicode's stream-safe format (UAX 15) allows 30 marks on a character. More are no writing, and normalisation would
# take time with the square of their number.
_MOST_MARKS = 30
_WORD_CHARACTER = re.compile(r"[^\W_]")
# Between a digit and a raised, lowered or ringed one, or a fraction.
_BEFORE_SMALL_DIGIT = re.compile(r"(?<=\d)(?=[²³¹¼½¾\u2070-\u209f\u2150-\u215f\u2189\u2460-\u24ff\u2776-\u2793])")


def require_encodable(text: str) -> None:
    """Refuse a text that holds half of a surrogate pair, which is no character.

    Raises:
        ConfigError: naming the half and its position.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the text holds half of a surrogate pair, {text[error.start]!r} at character {error.start}, which is no "
            "character; decode the text anew from its source"
        ) from None


def tidy_characters(text: str) -> str:
    """A text without invisible characters, with composed accents (Unicode's NFC), and with plain line breaks.

    Dropped: byte order marks, soft hyphens, zero-width characters, bidirectional controls, selectors, characters of
    private use. Control characters become spaces. Ligatures and styled letters ("\ufb01", full-width or mathematical
    letters) become the letters that they stand for. Printable ASCII and line breaks stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _STRAY_JOINER.sub("", _SOFT_HYPHEN_AT_LINE_END.sub("", text))
    present = {character for character in set(text) if not (character.isascii() and character.isprintable())}
    changed = {ord(character): _tidy(character) for character in present if _tidy(character) != character}
    text = text.translate(changed)
    marks = "".join(character for character in present if unicodedata.combining(character))
    if marks:
        text = re.sub(f"([{re.escape(marks)}]{{{_MOST_MARKS}}})[{re.escape(marks)}]+", r"\1", text)
    return unicodedata.normalize("NFC", text)


def part_small_digits(text: str) -> str:
    """A text whose compatibility forms keep its numbers: "1½" would become 11⁄2 in them, and "10²" 102."""
    return _BEFORE_SMALL_DIGIT.sub(" ", text)


def has_words(text: str) -> bool:
    """Whether there is a letter or a digit in it."""
    return _WORD_CHARACTER.search(text) is not None


def is_unspaced(character: str) -> bool:
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


def _tidy(character: str) -> str:
    if character in _LINE_BREAKS:
        return _LINE_BREAKS[character]
    if character in _JOINERS:
        return character  # one that belongs to its word
    category, code = unicodedata.category(character), ord(character)
    if category == "Cc":
        return " "
    if category == "Co" or character in _UNSEEN or (category == "Cf" and character not in _SEEN_FORMATS):
        return ""
    if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
        return ""  # variation selectors, and codes that are no characters
    if unicodedata.decomposition(character).startswith(("<compat>", "<font>", "<wide>", "<noBreak> 0")):
        plain = unicodedata.normalize("NFKC", character)
        if plain.isascii() and plain.isalnum():
            return plain
    return character
