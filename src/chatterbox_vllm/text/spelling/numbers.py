"""Numbers in American English words: "twenty one", "one hundred five", "nineteen hundred"."""

from __future__ import annotations

# fmt: off
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_THOUSANDS = ("thousand", "million", "billion", "trillion", "quadrillion")
# What is said in hundreds: "nineteen hundred", but "two thousand".
_HUNDREDS_BELOW = 3000
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}


def number_words(number: int) -> str:
    """A number of up to 18 digits in words, as the published texts have it."""
    if number % 100 == 0 and number % 1000 and number < _HUNDREDS_BELOW:
        return f"{_below_thousand(number // 100)} hundred"
    groups: list[str] = []
    rest, unit = number, ""
    for larger in (*_THOUSANDS, ""):
        rest, group = divmod(rest, 1000)
        if group:
            groups.insert(0, f"{_below_thousand(group)} {unit}".strip())
        unit = larger
    return " ".join(groups) or _SMALL[0]


def ordinal_words(number: int) -> str:
    """Its place in a row: "twenty first"."""
    *others, last = number_words(number).split()
    last = _ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return " ".join([*others, last])


def digit_words(digits: str) -> str:
    """Each digit by itself."""
    return " ".join(_SMALL[int(digit)] for digit in digits)


def year_words(year: int) -> str:
    """From 1100 to 2099: "nineteen oh five", "two thousand five", "twenty nineteen"."""
    century, rest = divmod(year, 100)
    if rest == 0 or (century == 20 and rest < 10):
        return number_words(year)
    return f"{number_words(century)} {minute_words(rest)}"


def decade_words(year: int) -> str:
    """The ten years, or the hundred, that begin with one: "nineteen nineties"."""
    words = year_words(year)
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def minute_words(number: int) -> str:
    """A number of two digits, the first of which is said where it is 0: "oh five"."""
    return f"oh {number_words(number)}" if number < 10 else number_words(number)


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [_SMALL[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words.append(_TENS[rest // 10 - 2])
        rest %= 10
    if rest:
        words.append(_SMALL[rest])
    return " ".join(words)
