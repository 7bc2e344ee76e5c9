"""Text from a file or a stream."""

from __future__ import annotations

import codecs
from pathlib import Path

from chatterbox_vllm.errors import ConfigError

_OTHER_ENCODINGS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(source: Path | bytes, name: str | None = None) -> str:
    """A text in UTF-8, with or without a byte order mark.

    Args:
        source: a file, or what was read from one.
        name: what error messages call it; None: the path, or "the text".

    Raises:
        ConfigError: the file cannot be read, or is not UTF-8; the message names the line and the byte.
    """
    if isinstance(source, Path):
        name = name or str(source)
        try:
            source = source.read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read ({error.strerror or error}); give a text file") from None
    name = name or "the text"
    if source.startswith(_OTHER_ENCODINGS):
        raise ConfigError(f"{name} is in UTF-16 or UTF-32, not in UTF-8; save it as UTF-8")
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name} is not in UTF-8: byte 0x{source[error.start]:02X} in line {line}; save it as UTF-8 or convert it, "
            "as in: iconv -f WINDOWS-1252 -t UTF-8 FILE"
        ) from None
