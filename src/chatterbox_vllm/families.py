"""The published model families, as data: repositories, files and the voice each one speaks with.

Only families whose way through the stages is implemented are listed; another one is a row here plus its talker.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chatterbox_vllm.errors import ConfigError


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
    def files(self) -> tuple[str, ...]:
        """Everything to download, the built-in voice included."""
        return (self.voice_encoder, self.t3, self.s3gen, self.tokenizer, self.builtin_voice)


ENGLISH = Family(
    name="english",
    repository="ResembleAI/chatterbox",
    revision="5bb1f6ee58e50c3b8d408bc82a6d3740c2db6e18",
    t3="t3_cfg.safetensors",
    s3gen="s3gen.safetensors",
    voice_encoder="ve.safetensors",
    tokenizer="tokenizer.json",
    builtin_voice="conds.pt",
)

FAMILIES = {family.name: family for family in (ENGLISH,)}


def family_of(name: str, directory: Path) -> Family:
    """The family that the configuration in `directory` names.

    Raises:
        ConfigError: there is none such.
    """
    if name not in FAMILIES:
        raise ConfigError(f"{directory}: unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]
