"""Which lines are headings."""

from __future__ import annotations

import re

from chatterbox_vllm.text.breaks import Break, breaks, end_of

_LONGEST_HEADING = 80

# What books are divided into, in the languages that readers bring most often.
_PARTS = (
    "chapter|chap|part|book|volume|vol|section|act|scene|canto|stave|episode|appendix|lesson|unit|day|letter"
    "|kapitel|teil|buch|band|abschnitt|akt|chapitre|partie|livre|tome|acte|cap[ií]tulo|parte|libro|livro|acto|capitolo"
    "|hoofdstuk|deel|boek|rozdzia[łl]|cz[eę][sś][cć]|księga|kapitola|глава|часть|книга|том"
)
_UNDER_TWENTY = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
    "|eighteen|nineteen"
)
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|last"
_COUNT = (
    rf"\d{{1,4}}|[ivxlcdm]{{1,8}}|(?:{_TENS})(?:[- ](?:{_UNDER_TWENTY}))?|{_UNDER_TWENTY}|(?:the )?(?:{_ORDINALS})"
    "|eins|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|premier|première|deux|trois|quatre|cinq"
)
_NAMED = (
    "prologue|epilogue|preface|foreword|introduction|afterword|contents|table of contents|interlude|conclusion"
    "|acknowledge?ments|dedication|glossary|bibliography|index|abstract|the end"
    "|prolog|epilog|vorwort|nachwort|einleitung|inhalt|avant-propos|épilogue|prólogo|epílogo|prefazione"
)
# The end of a part's number, or of a named part: nothing, or a mark before the title.
_CLOSED = r"\s*(?:$|[.:)—–-])"
_CHAPTER = re.compile(
    rf"(?:{_PARTS})\.? (?:{_COUNT}|(?-i:[A-Z]))(?:{_CLOSED}|(?P<title> (?=\S)))"
    rf"|(?:{_NAMED}){_CLOSED}|第.{{1,6}}[章回节節幕]",
    re.IGNORECASE,
)
_NUMBER_ALONE = re.compile(rf"(?:{_COUNT})\.?", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Shorter words are small in titles: of, the, and, von, dans.
_SMALL_WORD = 4
_SPOKEN = "\"'“‘«„‹–—-"
_HASHES = re.compile("#{1,6} ")


def opens_chapter(line: str) -> bool:
    """Whether a line says that a part of a book begins, such as "Chapter Two", "PART I: Low Water", "Epilogue"."""
    if len(line) > _LONGEST_HEADING:
        return False
    found = _CHAPTER.match(line)
    if found is None:
        return False
    # "Chapter Two The Long Road" does, "Chapter two was long" does not.
    return found["title"] is None or _is_title(line[found.end() :], least_words=1)


def is_heading(line: str) -> bool:
    """Whether a line is a heading, if it stands between empty lines: one without a mark at its end, or a title."""
    if len(line) > _LONGEST_HEADING or line[0] in _SPOKEN:
        return False
    return end_of(line) == Break.WORD or is_marked_heading(line) or _is_title(line, least_words=2)


def is_marked_heading(line: str) -> bool:
    """Whether a line is a heading wherever it stands: "# Title", "Chapter Two", "THE LONG ROAD"."""
    if len(line) > _LONGEST_HEADING or line[0] in _SPOKEN:
        return False
    return _HASHES.match(line) is not None or opens_chapter(line) or is_capitals(line)


def is_number_alone(line: str) -> bool:
    """Whether a line is a chapter's number and nothing else: "II.", "12", "Three"."""
    return _NUMBER_ALONE.fullmatch(line) is not None


def is_capitals(line: str) -> bool:
    """Whether a line is written in capitals; a few may be an abbreviation."""
    return line.isupper() and sum(map(str.isalpha, line)) >= _SMALL_WORD


def _is_title(line: str, least_words: int) -> bool:
    if any(kind == Break.SENTENCE and place < len(line) for place, kind in breaks(line)):
        return False
    words = _WORD.findall(line)
    capitals = sum(word[0].isupper() for word in words)
    return (
        least_words <= capitals
        and len(words) <= 12
        and words[0][0].isupper()
        and all(word[0].isupper() for word in words if len(word) >= _SMALL_WORD)
    )
