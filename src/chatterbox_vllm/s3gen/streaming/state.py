"""An utterance that is rendered while its speech tokens are still being drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.s3gen.request import check_ids, require_speech
from chatterbox_vllm.s3gen.streaming.vocoder import VocoderState


@dataclass(frozen=True)
class StreamState:
    """What S3Gen knows of an utterance between two chunks. Nothing of it is kept anywhere else.

    Attributes:
        prompt: whose voice.
        seed: of the noise.
        rendered: speech tokens whose mel is made.
        tokens: the last of them, [n] int64 on the CPU.
        vocoder: their frames, and how far the waveform is.
    """

    prompt: FlowPrompt
    seed: int
    rendered: int
    tokens: torch.Tensor
    vocoder: VocoderState

    @classmethod
    def start(cls, config: S3GenConfig, device: torch.device, prompt: FlowPrompt, seed: int) -> StreamState:
        """Before the first chunk."""
        vocoder = VocoderState.start(config.hift, device)
        return cls(prompt, seed, 0, torch.empty(0, dtype=torch.int64), vocoder)

    def frame(self, token: int) -> int:
        """The first generated frame that stands for the utterance's speech token of this number.

        A prompt that ends with half a token has taken the first one's first frame.
        """
        taken = len(self.prompt.mel) - UPSAMPLING * len(self.prompt.tokens)
        return max(0, UPSAMPLING * token - taken)


@dataclass(frozen=True)
class StreamChunk:
    """The next speech tokens of an utterance.

    Attributes:
        tokens: [n] int64 on the CPU, those after `state.rendered`.
        rendered: how many of them become mel now. The others are only looked at, and come again with the next chunk.
        last: whether the utterance ends with them; then all are rendered.
    """

    state: StreamState
    tokens: torch.Tensor
    rendered: int
    last: bool

    def check(self, config: S3GenConfig) -> None:
        """Raises `GenerationError` for no tokens or one outside the codebook, `ConfigError` for a wrong `rendered`."""
        require_speech(len(self.tokens))
        check_ids("speech", self.tokens, config)
        if not 0 < self.rendered <= len(self.tokens) or (self.last and self.rendered < len(self.tokens)):
            raise ConfigError(
                f"of {len(self.tokens)} tokens {self.rendered} cannot be rendered; render at least one, and in the "
                "last chunk all"
            )
