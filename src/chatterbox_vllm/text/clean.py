"""Texts that were written for the eye, made fit to be spoken: markdown, addresses, footnote marks, emoji."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from chatterbox_vllm.errors import ConfigError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

EmojiMode = Literal["drop", "say", "keep"]


@dataclass(frozen=True)
class Cleaning:
    """What is made fit to be spoken.

    Attributes:
        markdown: emphasis, headings, lists, links, images (their description is spoken), tables (a row is a sentence),
            quotations and rules lose their marks; HTML tags and blocks of code are left out.
        addresses: "https://www.example.com/a?b=c" becomes "example dot com", "jo@example.org" "jo at example dot org".
        footnotes: marks such as "[12]", "[^1]", "¹" and "*" after a word are left out; the notes are spoken.
        emoji: "drop" them, "say" their names in English, or "keep" them.

    Raises:
        ConfigError: a value of the wrong type.
    """

    markdown: bool = True
    addresses: bool = True
    footnotes: bool = True
    emoji: EmojiMode = "drop"

    def __post_init__(self) -> None:
        for name in ("markdown", "addresses", "footnotes"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.emoji not in get_args(EmojiMode):
            raise ConfigError(f"emoji must be one of {', '.join(get_args(EmojiMode))}, not {self.emoji!r}")


DEFAULT_CLEANING = Cleaning()

# All emoji lie beyond Latin-1, but for keycaps and the two signs.
_MAYBE_EMOJI = re.compile("[#*0-9©®]?[^\x00-\xff]+")
# Where an address ends that no space ends: marks that none holds, and letters of scripts that put a particle or no
# space behind it (Thai to Burmese, Khmer, kana, Han, Hangul).
_ENDS_ADDRESS = (
    "«»،؛؟۔।॥\u2010-\u2027\u2030-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
    "\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff"
)
_ADDRESS = re.compile(
    r"(?P<mail>(?<![\w.+-])[\w.+-]{1,64}@(?P<mail_host>(?:[\w-]{1,63}\.){1,8}[a-z]{2,24}))(?![a-z0-9_])"
    r"|(?<![a-z0-9_])(?:(?:https?|ftp)://|www\.)(?:www\.)?(?P<host>[^\s/?#<>\"'()\[\]{},;:]+)(?::\d+)?"
    rf"(?P<path>[/?#][^\s<>\"{_ENDS_ADDRESS}]*)?",
    re.IGNORECASE,
)
_TRAILING = ".,;:!?)]}'\"*_"
_NOTE = re.compile(r"(?m)^\[\^[^\]\s]{1,40}\]:[ \t]*")
_FOOTNOTE_MARK = re.compile(
    r"[ \t]?\[(?:\^[^\]\s]{1,40}|\d{1,3}(?:[,–-] ?\d{1,3}){0,8})\]"
    r"|(?<=[^\W\d_][^\W\d_][^\W\d_])[⁰¹²³⁴-⁹]+|(?<=[.,;:!?\"”’)])[⁰¹²³⁴-⁹]+"  # not those of km²
    r"|(?<=[\w.,;:!?\"”’)])[*†‡]{1,3}(?=\s|$)"
    r"|(?<=[.!?\"”’])\(\d{1,3}\)(?=\s|$)"
)


def replace_emoji(text: str, mode: EmojiMode) -> str:
    """A text whose emoji are dropped, named or kept. For texts whose invisible characters still join emoji."""
    if mode == "keep" or text.isascii():
        return text
    import emoji  # a table of 5,000, which few texts need

    if mode == "drop":
        return _MAYBE_EMOJI.sub(lambda found: emoji.replace_emoji(found.group(), ""), text)
    return _MAYBE_EMOJI.sub(lambda found: _said(found.group()), text)


def clean_text(text: str, cleaning: Cleaning) -> str:
    """A text made fit to be spoken; its paragraphs, lines and lists stay lines of their own."""
    if cleaning.footnotes:
        text = _NOTE.sub("", text)  # else a note might be taken for the address of a link
    return _Document(cleaning).text(_parser().parse(text)) if cleaning.markdown else _clean_words(text, cleaning)


def _said(run: str) -> str:
    import emoji

    said: list[str] = []
    end = 0
    for found in emoji.emoji_list(run):
        before = run[end : found["match_start"]]
        name = emoji.demojize(found["emoji"], delimiters=("", "")).replace("_", " ").replace("-", " ")
        # The same emoji in a row is said once.
        if before.strip() or not said or said[-1] != name:
            said += [before] * bool(before.strip()) + [name]
        end = found["match_end"]
    if not said:
        return run
    return ", " + ", ".join(part.strip() for part in said) + "," + run[end:]


def _clean_words(text: str, cleaning: Cleaning) -> str:
    if cleaning.footnotes:
        text = _FOOTNOTE_MARK.sub("", text)
    return _ADDRESS.sub(_spoken_address, text) if cleaning.addresses else text


def _spoken_address(found: re.Match[str]) -> str:
    if found["mail"]:
        return found["mail"].replace("@", " at ").replace(".", " dot ")
    host = found["host"]
    path = found["path"] or ""
    end = path or host
    trailing = end[len(end.rstrip(_TRAILING)) :]
    spoken = (host if path else host.rstrip(_TRAILING)).replace(".", " dot ")
    return spoken + trailing


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # not needed by texts that are not cleaned

    # Four spaces before a line are an indented paragraph more often than code.
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable("code")


class _Document:
    """Writes a parsed document as plain text."""

    def __init__(self, cleaning: Cleaning):
        self._cleaning = cleaning
        self._numbers: list[int | None] = []  # of the lists that are open: the next entry's, None for bullets
        self._mark = ""  # of the entry that has just begun
        self._cells: list[str] | None = None  # of the table row that is open
        self._lines: list[str] = []

    def text(self, tokens: Sequence[Token]) -> str:
        for token in tokens:
            self._read(token)
        return "\n".join(self._lines).strip()

    def _read(self, token: Token) -> None:
        match token.type:
            case "inline":
                self._write(self._inline(token.children or []))
            case "heading_open":
                self._mark = "# "
            case "paragraph_close" | "heading_close" | "bullet_list_close" | "ordered_list_close" | "table_close":
                if not token.hidden:
                    self._lines.append("")
            case "bullet_list_open":
                self._numbers.append(None)
            case "ordered_list_open":
                self._numbers.append(int(token.attrGet("start") or 1))
            case "list_item_open":
                self._mark = "• " if self._numbers[-1] is None else f"{self._numbers[-1]}. "
                self._numbers[-1] = None if self._numbers[-1] is None else self._numbers[-1] + 1
            case "tr_open":
                self._cells = []
            case "tr_close":
                row = ", ".join(filter(None, self._cells or []))
                self._cells = None
                self._write(row and row + ("" if row.endswith((".", "!", "?")) else "."))
            case "hr" | "fence":
                self._lines += ["", "* * *", ""]
            case "html_block":
                self._lines += ["", re.sub(r"<[^<>]*>", " ", token.content), ""]
        if token.type in ("bullet_list_close", "ordered_list_close"):
            self._numbers.pop()

    def _write(self, text: str) -> None:
        if self._cells is not None:
            self._cells.append(" ".join(text.split()))
            return
        if text:
            self._lines.append(self._mark + text)
        self._mark = ""

    def _inline(self, tokens: Sequence[Token]) -> str:
        parts = []
        for token in tokens:
            if token.type in ("text", "code_inline"):
                parts.append(token.content)
            elif token.type in ("softbreak", "hardbreak"):
                parts.append("\n")
            elif token.type == "image":
                parts.append(self._inline(token.children or []))
        return _clean_words("".join(parts), self._cleaning)
