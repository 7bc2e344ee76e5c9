"""What the flow is given for a chunk: the voice's prompt, the last frames that are out already, and the new tokens.

The frames that are out stand in the condition like a longer prompt, which the flow was trained to continue: it was
shown random beginnings of mels. So a chunk joins the one before it without any change to the model. Attention goes over
the window alone, so that the work does not grow with the utterance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chatterbox_vllm.cuda.transfer import to_device
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.noise import NoiseSource
from chatterbox_vllm.s3gen.prompt import PreparedPrompt
from chatterbox_vllm.s3gen.streaming.state import StreamChunk

# Rendered tokens that a window sees before its new ones: a second.
CONTEXT_TOKENS = 25


@dataclass(frozen=True)
class Window:
    """One row of the flow.

    Attributes:
        prompt: the voice's prompt, and the rendered tokens and frames after it.
        tokens: [n] int64 on the CPU, the chunk's.
        z: noise, [mels, frames of prompt and tokens].
        frames: how many frames behind the prompt are the chunk's; those after them are of tokens only looked at.
    """

    prompt: PreparedPrompt
    tokens: torch.Tensor
    z: torch.Tensor
    frames: int


def window_of(chunk: StreamChunk, voice: PreparedPrompt, noise: NoiseSource) -> Window:
    """The window of a chunk.

    Args:
        voice: of the chunk's prompt.
    """
    state, done = chunk.state, chunk.state.rendered
    kept = min(done, CONTEXT_TOKENS)
    begins = done - kept
    # Half a token at the prompt's end goes on in the utterance's first token alone.
    mel = voice.mel if begins == 0 else voice.mel[: UPSAMPLING * len(voice.tokens)]
    first, present = state.frame(begins), state.frame(done)
    end = state.frame(done + len(chunk.tokens))
    seen = to_device(state.tokens[len(state.tokens) - kept :], noise.device)
    prompt = PreparedPrompt(
        tokens=torch.cat([voice.tokens, seen]),
        mel=torch.cat([mel, state.mel[len(state.mel) - (present - first) :]]),
        speaker=voice.speaker,
    )
    z = torch.cat([noise.prompt_z(state.seed, len(mel)), noise.z(state.seed, first, end - first)], dim=1)
    return Window(prompt, chunk.tokens, z, state.frame(done + chunk.rendered) - present)


def frames_of(chunk: StreamChunk) -> int:
    """Frames of a chunk's window."""
    kept = min(chunk.state.rendered, CONTEXT_TOKENS)
    return UPSAMPLING * (len(chunk.state.prompt.tokens) + kept + len(chunk.tokens))
