"""Chunks of many utterances through flow and vocoder in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from chatterbox_vllm.cuda.transfer import RowsToHost
from chatterbox_vllm.s3gen.flow.batch import TokenToMel
from chatterbox_vllm.s3gen.noise import NoiseSource
from chatterbox_vllm.s3gen.prompt import PreparedPrompt
from chatterbox_vllm.s3gen.streaming.flow import WindowsToMels
from chatterbox_vllm.s3gen.streaming.state import StreamChunk, StreamState
from chatterbox_vllm.s3gen.streaming.vocoder import MelStretch, VocoderInStretches, VocoderState
from chatterbox_vllm.s3gen.streaming.window import CONTEXT_TOKENS, Window
from chatterbox_vllm.s3gen.vocoder.batch import MelToWave


@dataclass(frozen=True)
class Rendered:
    """What came of a chunk.

    Attributes:
        wave: samples [n] float32 on the CPU that are certain now. Those of a batch may share a block of memory.
        state: of the utterance after them.
        finite: whether the mel is, and whether the waveform is.
    """

    wave: torch.Tensor
    state: StreamState
    finite: tuple[bool, bool]


class ChunkRenderer:
    """Reads the weights as they are now; make a new one after they were cast or moved."""

    def __init__(self, token_to_mel: TokenToMel, mel_to_wave: MelToWave, noise: NoiseSource):
        self.flow = WindowsToMels(token_to_mel, noise)
        self.vocoder = VocoderInStretches(mel_to_wave, noise, token_to_mel.graph_pool)

    def launch(
        self,
        chunks: Sequence[StreamChunk],
        voices: Sequence[PreparedPrompt],
        steps: int,
        between: Callable[[], object] | None = None,
    ) -> Callable[[], list[Rendered]]:
        """Give the device all the work for these chunks; the function that is returned waits for it, once.

        Args:
            voices: the chunks' prompts on the device.
            steps, between: see `S3Gen.synthesize`.
        """
        windows = [Window.of(chunk, voice) for chunk, voice in zip(chunks, voices, strict=True)]
        mels = self.flow(windows, steps, between)
        if between is not None:
            between()
        stretches = [
            MelStretch(chunk.state.vocoder, mel, chunk.last, chunk.state.seed)
            for chunk, mel in zip(chunks, mels, strict=True)
        ]
        spoken = self.vocoder(stretches)
        finite = torch.stack([one.finite for one in spoken]).flatten().float()
        fetched = RowsToHost([*(one.wave for one in spoken), finite])
        states = [_after(chunk, one.state) for chunk, one in zip(chunks, spoken, strict=True)]

        def rendered() -> list[Rendered]:
            *waves, finite = fetched.wait()
            fine = [(bool(mel), bool(wave)) for mel, wave in finite.view(-1, 2).tolist()]
            return [Rendered(*own) for own in zip(waves, states, fine, strict=True)]

        return rendered

    def record_graphs(self, most_rows: int) -> int:
        """Record now the graphs of batches of up to so many chunks; nothing without CUDA graphs.

        Returns:
            How many there are beside those of the flow's steps.
        """
        return self.flow.record_graphs(most_rows) + self.vocoder.record_graphs(most_rows)


def _after(chunk: StreamChunk, vocoder: VocoderState) -> StreamState:
    old = chunk.state
    tokens = torch.cat([old.tokens, chunk.tokens[: chunk.rendered]])[-CONTEXT_TOKENS:].clone()
    return StreamState(old.prompt, old.seed, old.rendered + chunk.rendered, tokens, vocoder)
