"""What voices may be called, and names that resemble others."""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

from chatterbox_vllm.errors import ConfigError

SUFFIX = ".pt"  # of a voice's file
NUMBER = r"[0-9a-f]{24}"  # what is drawn for an id
_NUMBER_BYTES = 12
_LONGEST_LABEL = 200
_LONGEST_NAME = 64
_MOST_TOLD = 10
_VOICE_ID = re.compile(rf"voice_{NUMBER}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")


def check_label(name: str, what: str = "name") -> str:
    """A name that people read: one line, not empty.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < len(name.strip()) <= _LONGEST_LABEL or not name.isprintable():
        raise ConfigError(f"{what} must be 1 to {_LONGEST_LABEL} printable characters, not {name[:40]!r}")
    return name.strip()


def check_language(language: str) -> str:
    """A BCP 47 tag.

    Raises:
        ConfigError: it is none.
    """
    if not _LANGUAGE.fullmatch(language):
        raise ConfigError(f"language must be a BCP 47 tag such as en-US, not {language[:40]!r}")
    return language


def is_voice_name(name: object) -> bool:
    """Whether a name is easily typed and can be a file's: letters (of any script, composed), digits, '-' and '_'."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= _LONGEST_NAME
        and name[0].isalnum()
        and all(character.isalnum() or character in "-_" for character in name)
        and unicodedata.is_normalized("NFC", name)
        and len((name + SUFFIX).encode()) <= 255
    )


def check_voice_name(name: str) -> str:
    """A name that `is_voice_name`.

    Raises:
        ConfigError: it is not.
    """
    if not is_voice_name(name):
        raise ConfigError(
            f"a voice cannot be named {name!r}; use 1 to {_LONGEST_NAME} letters, digits, '-' and '_', a letter or "
            "digit first"
        )
    return name


def draw_id(prefix: str) -> str:
    """A new id, such as voice_0f3a…, which nobody can guess."""
    return f"{prefix}_{secrets.token_hex(_NUMBER_BYTES)}"


def is_voice_id(name: str) -> bool:
    """Whether a name is an id that was drawn for a voice."""
    return _VOICE_ID.fullmatch(name) is not None


def name_key(name: str) -> str:
    """What stands for a name in file names; the same however its letters are composed."""
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="surrogatepass")).hexdigest()[:32]


def named_alike(name: str, names: Iterable[str]) -> str:
    """For the end of a message: the names that come nearest to one that is unknown, or else the first few."""
    by_fold = {known.casefold(): known for known in names}
    near = get_close_matches(name.casefold(), by_fold, n=_MOST_TOLD)
    told = [by_fold[fold] for fold in near] or list(by_fold.values())[:_MOST_TOLD]
    return f", such as {', '.join(told)}" if told else " (there are none yet)"
