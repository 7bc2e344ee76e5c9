"""Russian: marks on stressed vowels."""

from __future__ import annotations

from functools import cached_property
from threading import Lock
from typing import Any

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.languages.library import PREPARED, library

# It is not on PyPI, so that no extra can bring it.
_INSTALL = "pip install git+https://github.com/Vuizur/add-stress-to-epub"


class RussianReader:
    """Prepares Russian texts. For several threads."""

    def __init__(self) -> None:
        self._lock = Lock()

    def read(self, text: str) -> str:
        """A text with a combining acute behind each stressed vowel.

        Raises:
            ConfigError: the library that knows them, or its model, cannot be had.
        """
        with self._lock:
            try:
                return str(self._stresser.stress_text(text))
            except ConfigError:
                raise
            except Exception as error:  # of its models
                raise ConfigError(
                    f"russian-text-stresser cannot mark stress ({type(error).__name__}: {error}); install its models "
                    f"as its page says, {PREPARED}"
                ) from error

    @cached_property
    def _stresser(self) -> Any:
        module = "russian_text_stresser.text_stresser"
        return library(module, "russian-text-stresser", "Russian", _INSTALL).RussianTextStresser()
