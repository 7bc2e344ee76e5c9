"""What a setting is, and what values of settings are read by."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from chatterbox_vllm.errors import ConfigError

T = TypeVar("T")
D = TypeVar("D")
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


@dataclass(frozen=True)
class Setting:
    """One setting and every way to give it.

    Attributes:
        keyword: in Python; empty for what only the environment sets.
        meaning: what it does and what it takes.
        default: of the keyword; None where `unset` says what happens without a value.
        unset: what None means.
        option: on the command line, in the form that Typer takes; None where there is no option.
        variable: the environment variable that stands in where the keyword is None.
    """

    keyword: str
    meaning: str
    default: bool | int | float | str | None = None
    unset: str = ""
    option: str | None = None
    variable: str | None = None

    @property
    def shown_default(self) -> str:
        """The default in words, for tables and help."""
        if self.unset:
            return self.unset
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return "none" if self.default is None else str(self.default)

    def resolve(self, value: object, parse: Callable[[object], T], default: D) -> T | D:
        """The keyword's value, or else the variable's where it is set and not empty, or else the default.

        Args:
            parse: raises ValueError with what it accepts.

        Raises:
            ConfigError: `parse` refused; the message names the keyword or the variable, and the value.
        """
        if value is not None:
            return self._parsed(self.keyword, value, parse)
        found = self.from_environment()
        return self._parsed(f"the environment variable {self.variable}", found, parse) if found else default

    def from_environment(self) -> str:
        """The variable's value, or nothing where it is not set."""
        return os.environ.get(self.variable, "").strip() if self.variable else ""

    def _parsed(self, where: str, value: object, parse: Callable[[object], T]) -> T:
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{where} must be {error}, not {value!r}") from None


def flag(value: object) -> bool:
    """True and False, and the usual words for them in the environment."""
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word in _YES or word in _NO:
        return word in _YES
    raise ValueError(f"{'/'.join(_YES)} or {'/'.join(_NO)}")


def positive(value: object) -> int:
    """A positive whole number."""
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError("a positive integer")
    return number


def above_zero(value: object) -> float:
    """A number above 0."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("a number above 0")
    return number


def share(value: object) -> float:
    """A number above 0, at most 1."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise ValueError("a number above 0 and at most 1")
    return number
