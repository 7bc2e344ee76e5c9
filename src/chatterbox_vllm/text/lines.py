"""Lines of a paragraph: what marks them, and how they are put together."""

from __future__ import annotations

import re
from collections.abc import Sequence

from chatterbox_vllm.text.characters import is_unspaced

_BULLET = re.compile("(?P<bullet>[-*+•‣▪●○◦∙·–—➢►✓✔]) +(?=.)")
_COUNT = re.compile(r"(?:\(?\d{1,3}[.)]|\(?[a-z][.)]|[ivx]{2,5}[.)]) +(?=.)")
_HASHES = re.compile("#{1,6} +(?=.)")
# Ornaments around a heading: "=== Intro ===", "~ 3 ~", "- 12 -".
_ORNAMENT_BEFORE = re.compile(r"[-=~*#_+•·–—❦]+ +")
_ORNAMENT_AFTER = re.compile(r" +[-=~*#_+•·–—❦]+$")
# A page's number behind the dots of a table of contents.
_PAGE = re.compile(r"[ .](\d{1,4}|[ivxlc]{1,6})$")
_LEAST_DOTS = 4

_GOES_ON = re.compile(r"[^\W_]+")
# The first of two words that are written with a hyphen.
_COMPOUND_BEGINS = re.compile(
    "well|self|half|all|ex|non|co|cross|ever|high|low|long|short|mid|much|never|new|old|first|second|third|last|full|semi"
    "|so|then|two|three|four|five|six|seven|eight|nine|ten|(?:twen|thir|for|fif|six|seven|eigh|nine)ty",
    re.IGNORECASE,
)
# "two- and three-year": the hyphen stands for a word that comes later.
_SUSPENDED = frozenset(("and", "or", "to", "und", "oder", "bis", "et", "ou", "y", "o"))


def item_mark(line: str) -> str | None:
    """What a list's entry begins with: its bullet, or "1" for a number or a letter of any kind; None for no entry."""
    found = _BULLET.match(line)
    if found:
        return found["bullet"]
    return "1" if _COUNT.match(line) else None


def without_mark(line: str) -> str:
    """A line without its bullet or hash signs, which are not spoken. An entry's number is."""
    found = _BULLET.match(line) or _HASHES.match(line)
    return line[found.end() :] if found else line


def without_ornaments(line: str) -> str:
    """A heading without the ornaments on both its sides."""
    before, after = _ORNAMENT_BEFORE.match(line), _ORNAMENT_AFTER.search(line)
    return line[before.end() : after.start()] if before and after and before.end() <= after.start() else line


def without_leaders(line: str) -> str:
    """A line of a table of contents with a comma in place of its row of dots."""
    found = _PAGE.search(line[-8:])
    if found is None:
        return line
    title = line[: -len(found[1])].rstrip(" .")
    dots = line.count(".", len(title))
    return f"{title}, {found[1]}" if title and dots >= _LEAST_DOTS else line


def is_broken(line: str, following: str) -> bool:
    """Whether a hyphen at a line's end goes on in the following line."""
    if line[-1] not in "-‐" or not line[-2:-1].isalpha():
        return False
    goes_on = _GOES_ON.match(following)
    return goes_on is not None and goes_on.group().lower() not in _SUSPENDED


def join_lines(lines: Sequence[str]) -> str:
    """Lines of a paragraph as one. Words that were broken at a line's end are put together.

    Between lines comes a space where their script has spaces. The hyphen of "govern-" is dropped, that of "well-",
    "mother-in-" and "Anglo-" (before a capital) stays.
    """
    joined = [lines[0]]
    for line, following in zip(lines, lines[1:], strict=False):
        if is_broken(line, following):
            word = line.rpartition(" ")[2][:-1]
            if following[0].islower() and "-" not in word and not _COMPOUND_BEGINS.fullmatch(word.lstrip("\"'“‘(")):
                joined[-1] = joined[-1][:-1]
        elif not (_is_spaceless(line[-1]) and _is_spaceless(following[0])):
            joined.append(" ")
        joined.append(following)
    return "".join(joined)


def _is_spaceless(character: str) -> bool:
    """Whether no space stands beside it: also the punctuation of East Asian scripts."""
    return is_unspaced(character) or "\u3000" <= character <= "\u303f" or "\uff01" <= character <= "\uff65"
