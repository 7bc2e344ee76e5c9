"""Chunks of many utterances through flow and vocoder in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from chatterbox_vllm.s3gen.flow.batch import TokenToMel
from chatterbox_vllm.s3gen.prompt import PreparedPrompt
from chatterbox_vllm.s3gen.streaming.state import StreamChunk, StreamState
from chatterbox_vllm.s3gen.streaming.vocoder import MelStretch, VocoderInStretches, VocoderState
from chatterbox_vllm.s3gen.streaming.window import CONTEXT_TOKENS, window_of

Rendered = tuple[torch.Tensor, StreamState]  # samples [n] float32, and the state after them


def render(
    chunks: Sequence[StreamChunk],
    voices: Sequence[PreparedPrompt],
    token_to_mel: TokenToMel,
    vocoder: VocoderInStretches,
    steps: int,
    between: Callable[[], object] | None = None,
) -> tuple[list[Rendered], list[torch.Tensor]]:
    """For each chunk the samples that are certain now and the state after it; and the chunks' mels.

    Args:
        voices: the chunks' prompts on the device.
        steps, between: see `S3Gen.synthesize`.
    """
    windows = [window_of(chunk, voice, vocoder.noise) for chunk, voice in zip(chunks, voices, strict=True)]
    flows = token_to_mel(
        [window.tokens for window in windows],
        [window.prompt for window in windows],
        [window.z for window in windows],
        steps,
        between,
    )
    mels = [flow[len(window.prompt.mel) :][: window.frames] for flow, window in zip(flows, windows, strict=True)]
    if between is not None:
        between()
    spoken = vocoder(
        [
            MelStretch(chunk.state.vocoder, mel, chunk.last, chunk.state.seed)
            for chunk, mel in zip(chunks, mels, strict=True)
        ]
    )
    rendered = [
        (wave, _after(chunk, mel, state)) for chunk, mel, (wave, state) in zip(chunks, mels, spoken, strict=True)
    ]
    return rendered, mels


def _after(chunk: StreamChunk, mel: torch.Tensor, vocoder: VocoderState) -> StreamState:
    old = chunk.state
    done = old.rendered + chunk.rendered
    kept = min(done, CONTEXT_TOKENS)
    frames = old.frame(done) - old.frame(done - kept)
    return StreamState(
        prompt=old.prompt,
        seed=old.seed,
        rendered=done,
        tokens=torch.cat([old.tokens, chunk.tokens[: chunk.rendered]])[-kept:],
        mel=torch.cat([old.mel, mel])[-frames:].clone(),
        vocoder=vocoder,
    )
