"""Words that hold digits, in letters: amounts of money, measures, shares, ordinals, decimals."""

from __future__ import annotations

import re
from collections.abc import Callable

from chatterbox_vllm.text.spelling.numbers import decade_words, digit_words, number_words, ordinal_words

_CURRENCIES = {"£": ("pound", "pounds"), "€": ("euro", "euros"), "¥": ("yen", "yen"), "$": ("dollar", "dollars")}
_MAGNITUDES = {"K": "thousand", "M": "million", "B": "billion", "T": "trillion"}
_MEASURES = {
    "ml": ("milliliter", "milliliters"),
    "cl": ("centiliter", "centiliters"),
    "l": ("liter", "liters"),
    "g": ("gram", "grams"),
    "kg": ("kilogram", "kilograms"),
    "mm": ("millimeter", "millimeters"),
    "cm": ("centimeter", "centimeters"),
    "m": ("meter", "meters"),
    "km": ("kilometer", "kilometers"),
    "in": ("inch", "inches"),
    "ft": ("foot", "feet"),
    "yd": ("yard", "yards"),
    "yds": ("yard", "yards"),
    "s": ("second", "seconds"),
    "sec": ("second", "seconds"),
    "secs": ("second", "seconds"),
    "%": ("percent", "percent"),
}
_MOST_DIGITS = 18  # of what has a name; more are said one by one
_DIGITS = rf"\d{{1,{_MOST_DIGITS}}}"
_WHOLE = f"(?P<whole>{_DIGITS})"
_PART = rf"(?:\.(?P<part>{_DIGITS}))"
_NUMBER = f"{_WHOLE}?{_PART}?"
_SIGN = "[£€¥$]"
_WORD = re.compile(r"(?P<before>[(\[\"']*)(?P<form>\S+?)(?P<after>[.,?!;:)\]\"']*)")
# "1,000" and "US$1,000".
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_COUNTRY = re.compile(rf"\b[A-Z]{{2,3}}(?={_SIGN}\d)")
_MAGNITUDE = re.compile(
    rf"(?P<sign>{_SIGN}){_WHOLE}{_PART}?(?:(?P<letter>[KMBT])\b| (?P<word>[a-z]+illion\b))",
    re.IGNORECASE,
)

_BESIDE_LETTERS = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")


def spell_amounts(text: str) -> str:
    """A text without digits; its white space is single spaces."""
    text = _COUNTRY.sub("", _THOUSANDS_COMMA.sub("", text))
    text = _MAGNITUDE.sub(_large_sum, text)
    return re.sub(r"\S*\d\S*", _word, text)


def _word(found: re.Match[str]) -> str:
    parts = _WORD.fullmatch(found[0])
    if parts is not None:
        for pattern, spoken in _FORMS:
            if form := pattern.fullmatch(parts["form"]):
                return f"{parts['before']}{spoken(form)}{parts['after']}"
    apart = _BESIDE_LETTERS.sub(" ", found[0])
    return re.sub(r"\d+", lambda digits: _number(digits[0]), apart)


def _number(digits: str) -> str:
    return number_words(int(digits)) if len(digits) <= _MOST_DIGITS else digit_words(digits)


def _decimal(whole: str, part: str | None) -> str:
    words = number_words(int(whole or 0))
    return words if part is None else f"{words} point {digit_words(part)}"


def _large_sum(found: re.Match[str]) -> str:
    magnitude = found["word"] or _MAGNITUDES[found["letter"].upper()]
    return f"{_decimal(found['whole'], found['part'])} {magnitude} {_CURRENCIES[found['sign']][1]}"


def _dollars(found: re.Match[str]) -> str:
    whole, cents = int(found["whole"] or 0), int((found["part"] or "0").ljust(2, "0"))
    dollars = f"{number_words(whole)} {_one_or_many(whole, _CURRENCIES['$'])}"
    if not cents:
        return dollars
    small = f"{number_words(cents)} {_one_or_many(cents, ('cent', 'cents'))}"
    return f"{dollars}, {small}" if whole else small


def _money(found: re.Match[str]) -> str:
    whole = int(found["whole"] or 0)
    pounds = f"{number_words(whole)} {_one_or_many(whole, _CURRENCIES[found['sign']])}"
    return pounds if found["part"] is None else f"{pounds} {number_words(int(found['part']))}"


def _measure(found: re.Match[str]) -> str:
    one_alone = found["whole"] == "1" and found["part"] is None
    return f"{_decimal(found['whole'], found['part'])} {_MEASURES[found['unit']][not one_alone]}"


def _one_or_many(number: int, words: tuple[str, str]) -> str:
    return words[number != 1]


_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), spoken)
    for pattern, spoken in (
        (rf"\$(?=[\d.]){_NUMBER}", _dollars),
        (rf"(?P<sign>{_SIGN})(?=[\d.]){_NUMBER}", _money),
        (r"(1[1-9]\d0|20\d0)s", lambda found: decade_words(int(found[1]))),
        (rf"(?=[\d.]){_NUMBER}(?P<unit>{'|'.join(_MEASURES)})", _measure),
        (
            rf"#{_WHOLE}{_PART}?",
            lambda found: f"number {_decimal(found['whole'], found['part'])}",
        ),
        (
            rf"{_WHOLE}{_PART}",
            lambda found: _decimal(found["whole"], found["part"]),
        ),
        (rf"({_DIGITS})(?:st|nd|rd|th)", lambda found: ordinal_words(int(found[1]))),
    )
)
