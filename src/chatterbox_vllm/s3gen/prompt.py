"""What S3Gen needs of a voice, and what it keeps of it on its device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.checkpoint.tensors import content_key, require_floats, require_ids

# As much of a reference clip as the published enrolment gives to the flow, in seconds and in speech tokens.
PROMPT_SECONDS = 10
MOST_PROMPT_TOKENS = 25 * PROMPT_SECONDS
# Natural logarithms of the magnitudes of audio within -1..1 lie between -11.5, where they are floored, and 6.
_LARGEST_MEL = 20.0
# The flow normalises the x-vector; this only keeps its length within float32.
_LARGEST_XVECTOR = 1e6


@dataclass(frozen=True, eq=False)
class FlowPrompt:
    """One speaker's prompt of the flow, on the CPU. Treat the tensors as constants: `key` stands for them.

    Attributes:
        tokens: speech tokens of the reference clip's first 10 s, int64 [p], 1 <= p <= 250.
        mel: log mel of the same, 50 frames/s, float32 [f, 80]; f is 2p, or 2p + 1 where the clip ends in half a token.
        xvector: float32 [192].
    """

    tokens: torch.Tensor
    mel: torch.Tensor
    xvector: torch.Tensor

    @cached_property
    def key(self) -> str:
        """A hash of the contents, for caches."""
        return content_key(tokens=self.tokens, mel=self.mel, xvector=self.xvector)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.mel.nbytes + self.xvector.nbytes

    def of_last(self, tokens: int) -> FlowPrompt:
        """The prompt that the clip's last so many speech tokens make alone; itself where there are no more.

        The end is kept, and with it the frame of a last half token: so an utterance has as many frames behind either.
        """
        left_out = len(self.tokens) - tokens
        if left_out <= 0:
            return self
        return FlowPrompt(self.tokens[left_out:], self.mel[2 * left_out :], self.xvector)

    def check(self, config: S3GenConfig) -> None:
        """Whether the flow of this configuration can take it.

        Raises:
            ConfigError: names what does not fit.
        """
        require_ids("prompt tokens", self.tokens, config.flow.vocab_size, MOST_PROMPT_TOKENS)
        frames = 2 * len(self.tokens)
        if isinstance(self.mel, torch.Tensor) and self.mel.dim() and len(self.mel) == frames + 1:
            frames += 1
        require_floats("prompt mel", self.mel, (frames, config.flow.num_mels), _LARGEST_MEL)
        require_floats("x-vector", self.xvector, (config.xvector.embedding_size,), _LARGEST_XVECTOR)


@dataclass(frozen=True)
class PreparedPrompt:
    """On the model's device: prompt tokens [p] int64, prompt mel [frames, mels], projected x-vector [mels]."""

    tokens: torch.Tensor
    mel: torch.Tensor
    speaker: torch.Tensor

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tokens, self.mel, self.speaker))
