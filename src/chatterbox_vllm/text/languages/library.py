"""Libraries that one language needs and others do not: extras of this package."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from functools import cached_property
from threading import Lock
from types import ModuleType
from typing import Any, ClassVar

from chatterbox_vllm.errors import ConfigError

GIVE_PREPARED = "give a text that is prepared already, with prepared_text=True (docs/languages.md says what that is)"
PREPARED = f"or {GIVE_PREPARED}"


class LibraryReader(ABC):
    """Prepares texts of a language with a library, which is loaded at the first of them. For several threads.

    Attributes:
        fault: what the library has not done where it raises.
        remedy: what a user can do about it.
    """

    fault: ClassVar[str]
    remedy: ClassVar[str] = GIVE_PREPARED

    def __init__(self) -> None:
        self._lock = Lock()

    def read(self, text: str) -> str:
        """A text as the model was trained on it.

        Raises:
            ConfigError: the library, or what it needs, cannot be had, or it fails.
        """
        with self._lock:
            try:
                return self._prepared(self._library, text)
            except ConfigError:
                raise
            except Exception as error:  # of the library's own kinds
                raise ConfigError(f"{self.fault} ({type(error).__name__}: {error}); {self.remedy}") from error

    @cached_property
    def _library(self) -> Any:
        return self._loaded()

    @abstractmethod
    def _loaded(self) -> Any:
        """The library, ready to work. Raises ConfigError where it cannot be had."""

    @abstractmethod
    def _prepared(self, tool: Any, text: str) -> str:
        """What it makes of a text."""


def library(module: str, package: str, language: str, install: str) -> ModuleType:
    """A module that texts of a language need.

    Args:
        package: that brings it, by its name on PyPI.
        language: its English name.
        install: the command that installs it.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{language} texts need {package}, which cannot be imported ({error}); install it: {install}, {PREPARED}"
        ) from error


def extra(name: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'chatterbox-vllm-engine[{name}]'"
