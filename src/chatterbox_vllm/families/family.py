"""The published model families, as data: repositories, files and the voice each one speaks with.

Only families whose way through the stages is implemented are listed; another one is a row here plus its talker.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One published model.

    Attributes:
        repository: hub id; `revision` is the commit that this version was checked against.
        t3, s3gen, voice_encoder, tokenizer, builtin_voice: file names in the repository.
    """

    name: str
    repository: str
    revision: str
    t3: str
    s3gen: str
    voice_encoder: str
    tokenizer: str
    builtin_voice: str

    @property
    def optional_files(self) -> tuple[str, ...]:
        """Of `files`, what a repository need not hold."""
        return (self.builtin_voice,)

    @property
    def files(self) -> tuple[str, ...]:
        """Everything to download, the built-in voice included."""
        return (self.voice_encoder, self.t3, self.s3gen, self.tokenizer, self.builtin_voice)
