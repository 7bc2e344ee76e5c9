"""Abbreviations that the published texts spell out, whatever their case; a full stop behind one goes with it."""

from __future__ import annotations

import re

_PEOPLE = {
    "capt": "captain",
    "col": "colonel",
    "dr": "doctor",
    "drs": "doctors",
    "esq": "esquire",
    "gen": "general",
    "hon": "honorable",
    "jr": "junior",
    "lt": "lieutenant",
    "maj": "major",
    "mr": "mister",
    "mrs": "misess",  # so spelled in the texts that the model learned from
    "rev": "reverend",
    "sgt": "sergeant",
    "st": "saint",
}
_DATES = {
    "jan": "january",
    "feb": "february",
    "mar": "march",
    "apr": "april",
    "jul": "july",
    "aug": "august",
    "sep": "september",
    "sept": "september",
    "oct": "october",
    "nov": "november",
    "dec": "december",
    "mon": "monday",
    "tue": "tuesday",
    "wed": "wednesday",
    "thur": "thursday",
    "fri": "friday",
    "sec": "second",
    "min": "minute",
    "mo": "month",
    "yr": "year",
}
_MEASURES = {
    "cal": "calorie",
    "ft": "feet",
    "gal": "gallon",
    "kg": "kilogram",
    "km": "kilometer",
    "oz": "ounce",
    "yd": "yard",
}
_OTHERS = {
    "abbrev": "abbreviation",
    "abstr": "abstract",
    "addr": "address",
    "ave": "avenue",
    "dept": "department",
    "e.g": "eg",
    "etc": "etc",
    "i.e": "ie",
    "ltd": "limited",
    "mt": "mount",
    "vol": "volume",
    "vs": "versus",
}
# Letters that are said by their names.
_LETTERS = ("ai", "cdn", "ceo", "cms", "tts")
_WORDS = _PEOPLE | _DATES | _MEASURES | _OTHERS | {letters: " ".join(letters) for letters in _LETTERS}
_PATTERN = re.compile(rf"\b({'|'.join(map(re.escape, _WORDS))})\b\.?", re.IGNORECASE)


def spell_abbreviations(text: str) -> str:
    """Abbreviations in words: "Dr." is "doctor", "AI" is "a i"."""
    return _PATTERN.sub(lambda found: _WORDS[found[1].lower()], text)
