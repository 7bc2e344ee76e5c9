"""Russian: marks on stressed vowels."""

from __future__ import annotations

from typing import Any

from chatterbox_vllm.text.languages.library import PREPARED, LibraryReader, library

# It is not on PyPI, so that no extra can bring it.
_INSTALL = "pip install git+https://github.com/Vuizur/add-stress-to-epub"


class RussianReader(LibraryReader):
    """Puts a combining acute behind each stressed vowel of Russian texts."""

    fault = "russian-text-stresser cannot mark stress"
    remedy = f"install its models as its page says, {PREPARED}"

    def _prepared(self, tool: Any, text: str) -> str:
        return str(tool.stress_text(text))

    def _loaded(self) -> Any:
        module = "russian_text_stresser.text_stresser"
        return library(module, "russian-text-stresser", "Russian", _INSTALL).RussianTextStresser()
