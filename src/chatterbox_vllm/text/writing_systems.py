"""Writing systems ("scripts" in Unicode's words): which a text is in, and whether a model can say it."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from functools import cache

from chatterbox_vllm.errors import ConfigError

logger = logging.getLogger(__name__)

# A paragraph is refused where more than this share of its letters cannot be said. Below it, they are single words, and
# a warning serves better than no audio at all.
_MOST_UNSAID = 0.25

# Unicode names a letter after its script: "CYRILLIC SMALL LETTER A", "ARABIC-INDIC DIGIT ONE", "OLD PERSIAN SIGN A".
_SCRIPT = re.compile(
    r"(?:FULLWIDTH |HALFWIDTH |EXTENDED |SUPERSCRIPT )?((?:(?:OLD|NEW|TAI|LINEAR|PAU|MENDE) )*[A-Z'-]+)"
)
_OTHER_NAMES = {
    "Cjk": "Han",
    "Ideographic": "Han",
    "Vertical": "Han",
    "Hangzhou": "Han",
    "Hentaigana": "Hiragana",
    "Arabic-Indic": "Arabic",
    "Canadian": "Canadian Aboriginal",
    "Ohm": "Greek",
    "Angstrom": "Latin",
    "Kelvin": "Latin",
    "Roman": "Latin",
    "Turned": "Latin",
}
# Letters that all scripts share: phonetic modifiers, styled letters and digits, ordinals.
_SHARED = re.compile(
    "MODIFIER|MATHEMATICAL|DOUBLE|SCRIPT |BLACK-LETTER|FEMININE|MASCULINE|MICRO|SEGMENTED|CARON|PLANCK|EULER"
    "|INFORMATION|ALEF |BET |GIMEL |DALET |.*WIDTH DIGIT|.*KATAKANA-HIRAGANA"
)


@cache
def writing_system(character: str) -> str | None:
    """Unicode's name of the script that a letter or digit is of, such as "Latin" or "Han"; None for all else.

    ASCII digits and what all scripts share are of none. The names are those of Unicode's Script property for all
    scripts in wide use.
    """
    category = unicodedata.category(character)
    if character.isascii():
        return "Latin" if category[0] == "L" else None
    if category[0] != "L" and category not in ("Nd", "Nl"):
        return None
    found = _SCRIPT.match(unicodedata.name(character, ""))
    if found is None or _SHARED.match(found.string):
        return None
    script = found[1].title()
    return _OTHER_NAMES.get(script, script)


def unsaid_letters(text: str, scripts: frozenset[str], language: str | None = None) -> dict[str, int]:
    """How many letters of which other scripts than `scripts` a text holds, most first.

    Args:
        language: that the text is said in, for the error.

    Raises:
        ConfigError: they are more than a quarter of all its letters, so that the model would babble.
    """
    if text.isascii() and "Latin" in scripts:
        return {}
    found: Counter[str] = Counter()
    for character, times in Counter(text).items():
        script = writing_system(character)
        if script is not None:
            found[script] += times
    unsaid = {script: times for script, times in found.most_common() if script not in scripts}
    if sum(unsaid.values()) > _MOST_UNSAID * found.total():
        shown = " ".join(text.split())
        shown = shown if len(shown) <= 40 else shown[:40] + "…"
        as_language, other = ("", "") if language is None else (f" as {language!r}", ", or its own language")
        raise ConfigError(
            f"this model cannot say {shown!r}{as_language}, which is written in {' and '.join(unsaid)}; it speaks "
            f"{' and '.join(sorted(scripts))} letters{as_language and ' then'}, so give a text in those{other}"
        )
    return unsaid


def warn_of_unsaid_letters(unsaid: dict[str, int], scripts: frozenset[str]) -> None:
    """Log one warning that names the scripts whose letters a text holds in passing; none for no letters."""
    if unsaid:
        counts = ", ".join(f"{times} of {script}" for script, times in unsaid.items())
        logger.warning(
            "the text holds letters that this model cannot say (%s); it speaks %s letters, so their words will be "
            "missing or garbled",
            counts,
            " and ".join(sorted(scripts)),
        )


def warn_of_unknown_letters(letters: list[str]) -> None:
    """Log one warning that names letters, digits and signs that a model has no token for; none for none."""
    if letters:
        shown = ", ".join(f"{letter} ({unicodedata.name(letter, 'no name')})" for letter in letters[:8])
        logger.warning(
            "the text holds letters or signs that this model has no token for: %s%s; their words will be missing or "
            "garbled",
            shown,
            f" and {len(letters) - 8} more" if len(letters) > 8 else "",
        )
