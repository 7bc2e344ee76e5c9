"""Hebrew: vowels, as diacritics."""

from __future__ import annotations

from typing import Any

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import HEBREW_MODEL
from chatterbox_vllm.text.languages.library import PREPARED, LibraryReader, extra, library


class HebrewReader(LibraryReader):
    """Adds diacritics to Hebrew texts; those that a text had are made anew."""

    fault = "dicta-onnx cannot add diacritics"

    def _prepared(self, tool: Any, text: str) -> str:
        return str(tool.add_diacritics(text))

    def _loaded(self) -> Any:
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
