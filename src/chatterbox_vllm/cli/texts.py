"""Texts from the command line, files and standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from chatterbox_vllm.errors import ConfigError

STANDARD_INPUT = "-"


def given_text(text: str | None, file: Path | None) -> str:
    """What TEXT or --file FILE say; exactly one of them is to be given.

    Raises:
        ConfigError: both or neither, a file that cannot be read, bytes that are not UTF-8, nothing to speak.
    """
    if (text is None) == (file is None):
        raise ConfigError("give the text either as TEXT or with --file FILE")
    if file is not None:
        text = read_text(file)
    elif text == STANDARD_INPUT:
        text = _decoded(sys.stdin.buffer.read(), "standard input")
    assert text is not None
    check_text(text)
    return text


def check_text(text: str) -> None:
    """Refuse what nobody can speak.

    Raises:
        ConfigError: bytes that are not UTF-8, or no letter or digit.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"the text is not UTF-8 at character {error.start + 1}: convert it, for example with "
            "iconv -f latin1 -t utf-8, or write it to a file in UTF-8 and give --file FILE"
        ) from error
    if not any(character.isalnum() for character in text):
        raise ConfigError("there is no text to speak; give at least one word")


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == STANDARD_INPUT else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the text in {path} cannot be read: {error.strerror or error}") from error
    return _decoded(data, str(path))


def read_texts(path: Path) -> list[str]:
    """The lines of a text file that hold something to speak.

    Raises:
        ConfigError: as `read_text`, or there are none.
    """
    texts = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not texts:
        raise ConfigError(f"{path}: holds no text; give a text a line")
    return texts


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the text in {where} cannot be read as UTF-8: {error}; convert it to UTF-8") from error
