"""Texts from the command line, files and standard input, and how they are read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_vllm.cli.arguments import Keywords
from chatterbox_vllm.cli.options import model_config
from chatterbox_vllm.errors import ConfigError

if TYPE_CHECKING:
    from chatterbox_vllm.text.pauses import Pauses

STANDARD_INPUT = "-"


def given_text(text: str | None, file: Path | None) -> str:
    """What TEXT or --file FILE say; exactly one of them is to be given.

    Raises:
        ConfigError: both or neither, a file that cannot be read, bytes that are not UTF-8, nothing to speak.
    """
    if (text is None) == (file is None):
        raise ConfigError("give the text either as TEXT or with --file FILE")
    if file is not None or text == STANDARD_INPUT:
        text = read_text(file or Path(STANDARD_INPUT))
    assert text is not None
    check_text(text)
    return text


def check_text(text: str) -> None:
    """Refuse what nobody can speak.

    Raises:
        ConfigError: bytes that are not UTF-8, or no letter or digit.
    """
    from chatterbox_vllm.text.characters import has_words

    try:
        text.encode()
    except UnicodeEncodeError as error:
        # Python gives such bytes of an argument as halves of surrogate pairs.
        raise ConfigError(
            f"the text is not in UTF-8 at character {error.start + 1}: convert it, for example with "
            "iconv -f WINDOWS-1252 -t UTF-8, or write it to a file in UTF-8 and give --file FILE"
        ) from error
    if not has_words(text):
        raise ConfigError("there is no text to speak; give at least one word")


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark; "-" is standard input.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    from chatterbox_vllm.text import files

    if str(path) == STANDARD_INPUT:
        return files.read_text(sys.stdin.buffer.read(), "the text on standard input")
    return files.read_text(path)


def read_texts(path: Path) -> list[str]:
    """The lines of a text file that hold something to speak.

    Raises:
        ConfigError: as `read_text`, or there are none.
    """
    texts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not texts:
        raise ConfigError(f"{path}: holds no text; give a text a line")
    return texts


def read_pauses(words: Sequence[str]) -> Pauses:
    """KIND=SECONDS words over the usual pauses.

    Raises:
        ConfigError: a word of another form, or a kind or length that there is not.
    """
    from chatterbox_vllm.text.pauses import Pauses

    kinds = [field.name for field in fields(Pauses)]
    found: dict[str, float] = {}
    for word in words:
        kind, _, seconds = word.partition("=")
        try:
            length = float(seconds.strip().removesuffix("s"))
        except ValueError:
            length = None
        if kind.strip() not in kinds or length is None:
            raise ConfigError(f"--pause is KIND=SECONDS, with KIND one of {', '.join(kinds)}, not {word!r}")
        found[kind.strip()] = length
    return Pauses(**found)


def check_script(text: str, pauses: Pauses, clean: bool, given: Keywords) -> str:
    """Refuse what the model that the keywords name cannot say; the code of the language that it is said in.

    Raises:
        ConfigError: see `text.script.read_script`; or the model does not speak the language, or it cannot be told.
        CheckpointError: there is no such model.
    """
    from chatterbox_vllm.families.registry import family_of
    from chatterbox_vllm.text.languages.rules import rules_of
    from chatterbox_vllm.text.script import read_script

    family = family_of(model_config(given).family)
    language = family.language_of(text, given.get("language"))
    read_script(text, pauses, clean, scripts=rules_of(language).scripts, language=language)
    return language
