"""What the flow is given for a chunk: the voice's prompt, the last frames that are out already, and the new tokens.

The frames that are out stand in the condition like a longer prompt, which the flow was trained to continue: it was
shown random beginnings of mels. So a chunk joins the one before it without any change to the model. Attention goes over
the window alone, so that the work does not grow with the utterance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.prompt import PreparedPrompt
from chatterbox_vllm.s3gen.streaming.state import StreamChunk
from chatterbox_vllm.s3gen.streaming.vocoder import KEPT_FRAMES

# Rendered tokens that a window sees before its new ones: a second.
CONTEXT_TOKENS = KEPT_FRAMES // UPSAMPLING


@dataclass(frozen=True)
class Window:
    """One row of the flow: frames of the prompt, of what is out, of the chunk, and of tokens that are only looked at.

    Attributes:
        voice: the prompt on the device.
        tokens: [n] int64, all of the window's.
        seed: of the noise.
        prompt: frames of the prompt.
        seen: frames that are out.
        mel: [KEPT_FRAMES, mels] on the device; its last `seen` are those.
        first: the number of the first of them in the utterance.
        frames: the chunk's.
    """

    voice: PreparedPrompt
    tokens: np.ndarray
    seed: int
    prompt: int
    seen: int
    mel: torch.Tensor
    first: int
    frames: int

    @classmethod
    def of(cls, chunk: StreamChunk, voice: PreparedPrompt) -> Window:
        """The window of a chunk; `voice` is of its prompt."""
        state = chunk.state
        kept = len(state.tokens)
        first, present = state.frame(state.rendered - kept), state.frame(state.rendered)
        # Half a token at the prompt's end goes on in the utterance's first token alone.
        at_start = kept == state.rendered
        prompt = len(state.prompt.mel) if at_start else UPSAMPLING * len(state.prompt.tokens)
        return cls(
            voice=voice,
            tokens=np.concatenate([own.numpy() for own in (state.prompt.tokens, state.tokens, chunk.tokens)]),
            seed=state.seed,
            prompt=prompt,
            seen=present - first,
            mel=state.vocoder.mel,
            first=first,
            frames=state.frame(state.rendered + chunk.rendered) - present,
        )
