"""Text that arrives in pieces, cut at ends of sentences as soon as they are certain."""

from __future__ import annotations

from chatterbox_vllm.text.breaks import Break, breaks
from chatterbox_vllm.text.languages.rules import rules_of


class ArrivingText:
    """Keeps what has arrived until a sentence of it is whole.

    Attributes:
        language: of the text, ISO 639-1; None is English.
    """

    def __init__(self, language: str | None = None) -> None:
        self.language = language
        self._kept = ""

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, piece: str) -> str:
        """What can be spoken now: whole sentences, or nothing yet.

        Whether a mark ends a sentence is told by what follows, so that the last one waits for another letter, for a new
        line or for `rest`. A sentence that is very long is cut at a clause.
        """
        self._kept += piece
        line = self._kept.rfind("\n") + 1
        end = max(line, self._end(Break.SENTENCE))
        if not end and len(self._kept) > rules_of(self.language).longest:
            end = self._end(Break.CLAUSE)
        ready, self._kept = self._kept[:end], self._kept[end:]
        return ready.strip()

    def rest(self) -> str:
        """All that is left."""
        ready, self._kept = self._kept, ""
        return ready.strip()

    def _end(self, least: Break) -> int:
        """After the last place where something that strong ends for certain."""
        text = self._kept
        found = (end for end, kind in breaks(text, self.language) if kind >= least and len(text) > end + 1)
        return max(found, default=0)
