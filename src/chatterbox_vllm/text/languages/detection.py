"""Which language a text is in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.characters import tidy_characters
from chatterbox_vllm.text.languages.library import extra
from chatterbox_vllm.text.pauses import take_marks

# A text is of the likeliest language where that has this share of all, and so many times the next one's.
_LEAST_SHARE = 0.3
_LEAST_LEAD = 1.5
# More of a text says no more about its language.
_ENOUGH = 4000
# Norwegian in its two written forms.
_OTHER_CODES = {"nb": "no", "nn": "no"}


def detect_language(text: str, languages: Mapping[str, str]) -> str:
    """The code of the one of `languages` (English names by code) that a text is in.

    Raises:
        ConfigError: the library is not installed, or the text is too short, too mixed or of another script to tell.
    """
    words = take_marks(tidy_characters(text))[0][:_ENOUGH]
    shares: defaultdict[str, float] = defaultdict(float)
    for found in _detector(frozenset(languages)).compute_language_confidence_values(words):
        shares[_code(found.language)] += found.value
    ranked = sorted(shares, key=lambda code: -shares[code])
    best, second = ranked[0], ranked[1]
    if shares[best] >= _LEAST_SHARE and shares[best] >= _LEAST_LEAD * shares[second]:
        return best
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 40 else shown[:40] + "…"
    likely = [languages[code] for code in ranked[:3] if shares[code] > 0]
    guess = f", perhaps {' or '.join(likely)}" if likely else ""
    raise ConfigError(f"the language of {shown!r} cannot be told for certain{guess}; give language")


@lru_cache(maxsize=4)
def _detector(codes: frozenset[str]) -> Any:
    try:
        from lingua import Language, LanguageDetectorBuilder
    except ImportError as error:
        raise ConfigError(
            f"telling a text's language needs lingua-language-detector, which cannot be imported ({error}); install "
            f"it: {extra('detect')}, or give language"
        ) from error
    return LanguageDetectorBuilder.from_languages(*(each for each in Language.all() if _code(each) in codes)).build()


def _code(language: Any) -> str:
    code = str(language.iso_code_639_1.name).lower()
    return _OTHER_CODES.get(code, code)
