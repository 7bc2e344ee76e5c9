"""KEY=VALUE words that stand for keywords of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatterbox_vllm.errors import ConfigError

_WORDS = {"true": True, "false": False, "none": None}


def model_options(option: str, words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words as parameters: true, false, none, numbers, and text as it stands.

    Args:
        option: that the words were given to, for messages.

    Raises:
        ConfigError: a word without "=", or a name twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option}: model options are KEY=VALUE, not {word!r}")
        if name in found:
            raise ConfigError(f"{option}: the model option {name!r} is given twice")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
