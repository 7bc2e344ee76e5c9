"""Where the voices are that rows name."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from chatterbox_vllm.voices.library import VoiceLibrary


class RowVoices:
    """Clips and saved voices beside the input, and the voices that the library and the model have by name.

    Args:
        directory: where relative paths begin.
        own: files of the voices that come with the model, by name.
        kind: of the voices that the model can use.
    """

    def __init__(self, directory: Path, own: Mapping[str, Path], kind: str | None):
        self._directory, self._own, self._kind = directory, own, kind
        self._named: dict[str, Path] = {}

    @cached_property
    def _library(self) -> VoiceLibrary:
        return VoiceLibrary()  # needs a home directory, which rows that name files do not

    def find(self, voice: str) -> Path:
        """The file of a row's voice, or a clip that it can be enrolled from. A file goes before a voice's name.

        Raises:
            ConfigError: there is neither.
            CheckpointError: the voice of that name is damaged.
        """
        beside = self._directory / voice
        with contextlib.suppress(OSError):  # such as a name that is too long for a file
            if beside.is_file():
                return beside
        if voice not in self._named:  # looked for once, as many rows have the same
            self._named[voice] = self._library.find(voice, self._own, self._kind, or_clip=True, start=self._directory)
        return self._named[voice]
