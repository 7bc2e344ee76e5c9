"""KEY=VALUE words that stand for keywords of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from chatterbox_vllm.cli.arguments import setting_type
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import BY_KEYWORD, ENGINE, QUANTIZATION, STREAM, Setting

_WORDS = {"true": True, "false": False, "none": None}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def model_options(option: str, words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words as parameters: true, false, none, numbers, and text as it stands.

    Names and types are checked here, as that needs none of the modules that a model takes. The rest is for
    `evaluation.preflight`.

    Args:
        option: that the words were given to, for messages.

    Raises:
        ConfigError: a word without "=", a name twice or unknown, or a value of another type than the setting's.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"{option}: model options are KEY=VALUE, not {word!r}")
        if name in found:
            raise ConfigError(f"{option}: the model option {name!r} is given twice")
        found[name] = _value(value)
    for name, given in found.items():
        if name not in BY_KEYWORD:
            known = ", ".join(s.keyword for s in (*ENGINE, *STREAM, *QUANTIZATION))
            raise ConfigError(f"{option}: the model option {name!r} is not understood; the options are {known}")
        _check_type(option, BY_KEYWORD[name], given)
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


def _check_type(option: str, setting: Setting, value: object) -> None:
    kind = setting_type(setting)
    choices = get_args(kind)  # of a literal
    if value is None or (choices and value in choices):
        return
    # A whole number serves for a fraction, and a number or a switch where text may stand: tier=4, quantize_s3gen=true.
    takes: tuple[type, ...] = {float: (int, float), str: (str, int, bool)}.get(kind, (kind,)) if not choices else ()
    if type(value) not in takes:
        what = ", ".join(choices) or _KINDS[kind]
        raise ConfigError(f"{option}: the model option {setting.keyword}={value!r} must be {what}")
