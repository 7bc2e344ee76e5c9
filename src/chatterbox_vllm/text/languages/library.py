"""Libraries that one language needs and others do not: extras of this package."""

from __future__ import annotations

import importlib
from types import ModuleType

from chatterbox_vllm.errors import ConfigError

PREPARED = "or give a text that is prepared already, with prepared_text=True (docs/languages.md says what that is)"


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
