"""Times of day, years and telephone numbers, in letters."""

from __future__ import annotations

import re

from chatterbox_vllm.text.spelling.numbers import digit_words, minute_words, number_words, year_words

_TIME = re.compile(
    r"(?<![\d.:])(?P<hour>\d{1,2})"
    r"(?:(?P<colon>:)(?P<minute>\d{2})(?!\d)|[.:]?\s*(?P<other>\d{2})(?=\s*[ap]\.?m\b))?"
    r"(?:\s*(?P<half>[ap])(?:m\b|\.m\b\.?))?",
    re.IGNORECASE,
)
# What stands before a number that is a year, also at the end of a word: "Berlin 1936".
_YEAR = re.compile(
    r"(?P<word>to|years|year|from|after|before|by|until|in|since|around|circa|during)\s?"
    r"(?P<year>1[1-9]\d\d|20\d\d)(?!\d)(?P<dash>\s?-)?",
    re.IGNORECASE,
)
_DECADE = re.compile(r"(?<![\w'])'(?P<ten>[2-9]0)s\b(?!')")
# What stands between two letters and holds nothing but what telephone numbers are written with.
_RUN = re.compile(r"[^a-zA-Z]+")
_CALLED = re.compile(r"[\d.+\-()\[\] ]+")
_LEAST_DIGITS, _MOST_DIGITS = 6, 13
_TWO_YEARS = re.compile(r"[12]\d{3} ?- ?[12]\d{3}")
_MARKS = ".,!?;"


def spell_times(text: str) -> str:
    """ "12:30" is "twelve thirty", "3.05 pm" is "three oh five PM"."""
    return _TIME.sub(_time, text)


def _time(found: re.Match[str]) -> str:
    minute = found["minute"] or found["other"]
    if not found["colon"] and found["half"] is None:
        return found[0]
    words = [number_words(int(found["hour"]))]
    if minute is not None and int(minute):
        words.append(minute_words(int(minute)))
    if found["half"] is not None:
        words.append(f"{found['half'].upper()}M")
    return " ".join(words)


def spell_years(text: str) -> str:
    """ "in 1999" is "in nineteen ninety nine", "from 1990 - 1995" says "to", "the '90s" is "the nineties"."""
    # Twice, as what the first puts for a dash stands before another year.
    text = _YEAR.sub(_year, _YEAR.sub(_year, text))
    return _DECADE.sub(lambda found: f"{number_words(int(found['ten']))[:-1]}ies", text)


def _year(found: re.Match[str]) -> str:
    return f"{found['word']} {year_words(int(found['year']))}{' to' if found['dash'] else ''}"


def spell_telephone_numbers(text: str) -> str:
    """Numbers of 6 to 13 digits digit by digit, with a breath where they are written in groups, or where people part
    them: "555 - 1234" is "five five five, one two three four"."""
    return _RUN.sub(_telephone, text)


def _telephone(found: re.Match[str]) -> str:
    said = found[0].strip(" ")
    number = said.rstrip(_MARKS)
    digits = sum(map(str.isdigit, number))
    if (
        not _CALLED.fullmatch(number)
        or number.count(".") == 1
        or not _LEAST_DIGITS <= digits <= _MOST_DIGITS
        or _TWO_YEARS.fullmatch(number)
    ):
        return found[0]
    before, _, after = found[0].partition(said)
    groups = [part for group in re.findall(r"\d+", number) for part in _parted(group)]
    return f"{before}{', '.join(map(digit_words, groups))}{said[len(number) :]}{after}"


def _parted(digits: str, last: int = 4) -> list[str]:
    """Digits in groups that can be said in one breath: four at the end, threes before them."""
    if len(digits) <= last:
        return [digits] if digits else []
    if len(digits) == 5:
        return [digits[:2], digits[2:]]
    if len(digits) == 8:
        return [digits[:2], digits[2:5], digits[5:]]
    return [*_parted(digits[:-last], 3), digits[-last:]]
