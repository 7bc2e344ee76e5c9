"""Hebrew: vowels, as diacritics."""

from __future__ import annotations

from functools import cached_property
from threading import Lock
from typing import Any

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import HEBREW_MODEL
from chatterbox_vllm.text.languages.library import PREPARED, extra, library


class HebrewReader:
    """Prepares Hebrew texts. For several threads."""

    def __init__(self) -> None:
        self._lock = Lock()

    def read(self, text: str) -> str:
        """A text with diacritics; those that it had are made anew.

        Raises:
            ConfigError: the library that knows them, or its model, cannot be had.
        """
        with self._lock:
            try:
                return str(self._dicta.add_diacritics(text))
            except ConfigError:
                raise
            except Exception as error:  # of the library's runtime
                raise ConfigError(
                    f"dicta-onnx cannot add diacritics ({type(error).__name__}: {error})"
                    f"; {PREPARED.removeprefix('or ')}"
                ) from error

    @cached_property
    def _dicta(self) -> Any:
        dicta = library("dicta_onnx", "dicta-onnx", "Hebrew", extra("he"))
        path = HEBREW_MODEL.from_environment()
        if not path:
            raise ConfigError(
                f"Hebrew texts need the model of dicta-onnx: name its file in {HEBREW_MODEL.variable} (the library's "
                f"page says where it is), {PREPARED}"
            )
        try:
            return dicta.Dicta(path)
        except Exception as error:  # whatever reading it, or fetching its vocabulary, can raise
            raise ConfigError(
                f"the model of dicta-onnx that {HEBREW_MODEL.variable} names cannot be used ({type(error).__name__}: "
                f"{error}); name another file, {PREPARED}"
            ) from error
