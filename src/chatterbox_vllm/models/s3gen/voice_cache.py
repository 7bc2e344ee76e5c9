"""What S3Gen keeps of a voice on its device, so that a voice is prepared once and not with every utterance."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
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


class VoiceCache:
    """Prepared voices by `key`, those used last, up to `most_bytes` (a 10 s reference takes 0.16 MB)."""

    def __init__(self, prepare: Callable[[S3GenVoice], PreparedVoice], most_bytes: int = 64 << 20):
        self.most_bytes = most_bytes
        self._prepare = prepare
        self._kept: OrderedDict[str, PreparedVoice] = OrderedDict()

    def __call__(self, voice: S3GenVoice) -> PreparedVoice:
        """The voice prepared; one without a key is prepared anew each time."""
        key = getattr(voice, "key", None)
        if key is None:
            return self._prepare(voice)
        if key not in self._kept:
            self._kept[key] = self._prepare(voice)
            while len(self._kept) > 1 and self.bytes > self.most_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Held on the device."""
        return sum(prepared.bytes for prepared in self._kept.values())

    def forget(self) -> None:
        """Drop all voices."""
        self._kept.clear()
