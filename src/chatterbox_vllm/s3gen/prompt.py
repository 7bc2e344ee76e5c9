"""What S3Gen needs of a voice, and what it keeps of it on its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class S3GenVoice(Protocol):
    """What S3Gen needs to know of a reference clip. A voice that also has a `key` (str) is prepared once a key."""

    @property
    def prompt_tokens(self) -> torch.Tensor:
        """[p] int64 speech tokens of the clip."""

    @property
    def prompt_mel(self) -> torch.Tensor:
        """[frames, mels] float32 mel of the clip, 2p frames, or one more where the clip ends in half a token."""

    @property
    def xvector(self) -> torch.Tensor:
        """[192] float32 x-vector of the clip."""


@dataclass(frozen=True)
class PreparedVoice:
    """On the model's device: prompt tokens [p] int64, prompt mel [frames, mels], projected x-vector [mels]."""

    tokens: torch.Tensor
    mel: torch.Tensor
    speaker: torch.Tensor

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tokens, self.mel, self.speaker))
