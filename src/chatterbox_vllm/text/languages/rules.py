"""What differs between languages where a text is read and cut.

Paces are estimates from how fast each is usually spoken, in characters as it is usually written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

# Half of the 1000 speech tokens that the published model may speak at once, which leaves room for slow voices.
_PIECE_SECONDS = 20


@dataclass(frozen=True)
class LanguageRules:
    """How texts of one language are read.

    Attributes:
        scripts: that it is written in, by their names in Unicode; Latin letters are known to all.
        pace: characters that are spoken in a second.
        tokens: text tokens of a character.
        abbreviations: words that a full stop belongs to, with "|" between them; "" has none but initials.
        ordinals: a number with a full stop is an ordinal ("3. Oktober").
    """

    scripts: frozenset[str] = frozenset({"Latin"})
    pace: float = 15
    tokens: float = 1
    abbreviations: str = ""
    ordinals: bool = False

    @property
    def longest(self) -> int:
        """Most characters of a piece."""
        return round(_PIECE_SECONDS * self.pace)

    @property
    def positions(self) -> int:
        """What a character takes of a sequence: its text tokens, and speech at half the usual pace."""
        return round(self.tokens + 2 * 25 / self.pace)

    @cached_property
    def abbreviation(self) -> re.Pattern[str]:
        """Matches a whole word before a full stop that belongs to it: also U.S, e.g, p.m."""
        return re.compile(rf"(?:\w\.)+\w?|(?:{self.abbreviations or '(?!)'})", re.IGNORECASE)


def _script(*names: str) -> frozenset[str]:
    return frozenset({"Latin", *names})


ENGLISH = LanguageRules(
    abbreviations="mr|mrs|ms|mx|messrs|mme|mlle|dr|prof|rev|fr|hon|st|sr|jr|gen|col|maj|capt|cmdr|lt|sgt|cpl|pvt|adm|gov"
    "|sen|rep|vs|cf|al|etc|viz|approx|est|ft|oz|lbs?|mt|ave|blvd|rd|eds?|inc|ltd|co|corp|bros|dept|univ|jan|feb|mar|apr"
    "|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thur?s?|fri|bzw|usw|ca|tel|evtl|ggf|sra|sres|uds?",
)
RULES = {
    "ar": LanguageRules(_script("Arabic"), pace=11, abbreviations="[دأمص]|إلخ"),
    "da": LanguageRules(
        abbreviations="hr|fr|frk|dr|prof|ca|kl|nr|osv|mht|mfl|vedr|evt|inkl|ekskl|jan|feb|apr|aug|sept?|okt|nov|dec",
        ordinals=True,
    ),
    "de": LanguageRules(
        abbreviations="hr|fr|dr|prof|dipl|ing|st|str|ca|bzw|usw|evtl|ggf|vgl|inkl|exkl|zzgl|abs|bsp|mio|mrd|tel|geb|gest"
        "|sog|jan|feb|apr|aug|sept?|okt|nov|dez|mo|di|mi|do|sa|so",
        ordinals=True,
    ),
    "el": LanguageRules(
        _script("Greek"), abbreviations="κ|κα|κος|δρ|καθ|κλπ|κτλ|αρ|σελ|τηλ|βλ|δηλ|ιαν|φεβ|απρ|αυγ|σεπ|οκτ|νοε|δεκ"
    ),
    "en": ENGLISH,
    "es": LanguageRules(
        abbreviations="sra?s?|sres|srta|dra?s?|uds?|vds?|prof|gral|avda?|etc|núm|pág|tel|aprox|ed|vol|cap"
    ),
    "fi": LanguageRules(abbreviations="esim|mm|ks|ns|ym|yms|jne|nk|hra|rva|tri|prof|klo|puh|vrt|os", ordinals=True),
    "fr": LanguageRules(
        abbreviations="mm?|mme|mmes|mlle|dr|pr|st|ste|etc|av|bd|env|éd|vol|chap|tél|janv|févr|juil|sept|oct|nov|déc"
    ),
    "he": LanguageRules(_script("Hebrew"), pace=10),
    "hi": LanguageRules(_script("Devanagari"), pace=12, abbreviations="डॉ|श्री|सु?श्री|प्रो|पं|कु"),
    "it": LanguageRules(abbreviations="sigg?|sig\\.?ra|dott|dr|prof|avv|ing|on|ecc|pag|tel|es|ca|vol|cap"),
    "ja": LanguageRules(_script("Han", "Hiragana", "Katakana"), pace=5, tokens=2),
    "ko": LanguageRules(_script("Hangul"), pace=6.5, tokens=2.5),
    "ms": LanguageRules(abbreviations="dr|tn|pn|en|cik|prof|dll|dsb|no|jld|hlm|bhd|sdn"),
    "nl": LanguageRules(
        abbreviations="dhr|mevr|mw|dr|prof|drs|ir|mr|bijv|bv|enz|ca|nr|blz|evt|incl|excl|tel|resp|jan|febr?|apr|aug|sept?|okt|nov|dec"
    ),
    "no": LanguageRules(
        abbreviations="hr|fr|dr|prof|ca|kl|nr|osv|bl|evt|inkl|tlf|jan|feb|apr|aug|sept?|okt|nov|des", ordinals=True
    ),
    "pl": LanguageRules(
        abbreviations="dr|prof|mgr|inż|ks|św|ul|al|pl|np|tzn|tj|itd|itp|godz|ok|tel|nr|str|tys|mln|mld|pan|zob|por",
        ordinals=True,
    ),
    "pt": LanguageRules(abbreviations="sra?s?|srta|dra?s?|prof|profa|av|etc|pág|tel|aprox|núm|ex|exa|vol|cap|ed"),
    "ru": LanguageRules(
        _script("Cyrillic"),
        pace=14,
        abbreviations="гг?|вв?|ул|пр|просп|д|кв|стр|рис|табл|см|ср|тыс|млн|млрд|руб|коп|тел|им|проф|акад|др|янв|февр?|апр|авг|сент?|окт|нояб|дек",
    ),
    "sv": LanguageRules(
        abbreviations="hr|fr|dr|prof|ca|kl|nr|osv|bl|dvs|resp|inkl|exkl|jfr|tel|st|jan|febr?|apr|aug|sept?|okt|nov|dec",
        ordinals=False,
    ),
    "sw": LanguageRules(abbreviations="bw|bi|dkt|prof|mhe|nk|uk|tel"),
    "tr": LanguageRules(abbreviations="dr|prof|doç|av|sn|vb|vs|örn|bkz|yy|sok|cad|mah|apt|tel|no", ordinals=True),
    "zh": LanguageRules(_script("Han", "Bopomofo"), pace=4.5, tokens=6),
}


def rules_of(language: str | None) -> LanguageRules:
    """The rules of a language by its code (ISO 639-1); English ones where it is not told or not known."""
    return RULES.get(language or "en", ENGLISH)
