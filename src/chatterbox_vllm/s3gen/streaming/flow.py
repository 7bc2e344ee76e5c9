"""The flow for windows of many utterances: one table to the device, few launches for all of them together.

What a batch of whole utterances does row by row would be most of a chunk's time. So the noise, the mels and the
encoder's means are gathered for all frames at once, and the encoder is one CUDA graph of a few sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from chatterbox_vllm.cuda.graphs import GraphedFunction
from chatterbox_vllm.cuda.transfer import to_device
from chatterbox_vllm.s3gen.flow.batch import TokenToMel
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.noise import GENERATED, PROMPT, NoiseSource
from chatterbox_vllm.s3gen.streaming.buckets import ROWS, Buckets
from chatterbox_vllm.s3gen.streaming.vocoder import KEPT_FRAMES
from chatterbox_vllm.s3gen.streaming.window import Window

# Tokens of the encoder's rows: a prompt of 4 to 10 s, a second, a chunk.
TOKENS = Buckets((128, 192, 256, 320, 416), most=16 * 192)


class WindowsToMels:
    """Reads the weights as they are now; make a new one after they were cast or moved."""

    def __init__(self, flow: TokenToMel, noise: NoiseSource):
        self.flow, self.noise = flow, noise
        encode = flow.encoder.of_lengths
        self._bucketed = flow.execution.cuda_graphs
        self._graphs = (
            GraphedFunction(encode, len(ROWS) * len(TOKENS.sizes), flow.graph_pool) if self._bucketed else None
        )
        self._encode: Callable[..., torch.Tensor] = self._graphs or encode

    def __call__(
        self, windows: Sequence[Window], steps: int, between: Callable[[], object] | None = None
    ) -> list[torch.Tensor]:
        """The chunks' mels, [frames, mels] float32 each; `steps` and `between` as for `TokenToMel`."""
        groups = [list(range(len(windows)))]
        if self._bucketed:
            groups = TOKENS.groups([len(window.tokens) for window in windows])
        order = [i for group in groups for i in group]
        mels = self._in_order([windows[i] for i in order], [len(group) for group in groups], steps, between)
        found = dict(zip(order, mels, strict=True))
        return [found[i] for i in range(len(windows))]

    def record_graphs(self, most_rows: int) -> int:
        """Record now the encoder's graphs for batches of so many rows, the largest first; nothing without CUDA graphs.

        Returns:
            How many there are.
        """
        if self._graphs is None:
            return 0
        for rows, tokens in TOKENS.shapes(most_rows):
            ids = torch.zeros(rows, tokens, dtype=torch.int64, device=self.noise.device)
            self._graphs.record(ids, ids[:, 0] + tokens)
        return self._graphs.count

    def _in_order(
        self, windows: Sequence[Window], groups: Sequence[int], steps: int, between: Callable[[], object] | None
    ) -> list[torch.Tensor]:
        """For windows of which so many after one another go through the encoder together."""
        lengths = [UPSAMPLING * len(window.tokens) for window in windows]
        layout = self.flow.layout(lengths)
        padded, counts, means_at = self._rows(windows, groups)
        # Each row's frames, then those that are nobody's: up to the row's end in a padded layout, else up to the end.
        filled = [*lengths, layout.frames - sum(lengths)] if layout.rows is None else [layout.frames] * layout.rows
        frames = self._frames(windows, lengths, means_at, filled)
        parts = [*padded, *counts, *frames]
        sent = to_device(torch.from_numpy(np.concatenate([part.ravel() for part in parts])), self.noise.device)
        on_device = [
            part.view(own.shape) for part, own in zip(sent.split([part.size for part in parts]), parts, strict=True)
        ]
        ids, lengths_of = on_device[: len(padded)], on_device[len(padded) : 2 * len(padded)]
        seed, use, place, mean_at, voice_at, mel_at = on_device[2 * len(padded) :]

        # Copies: a graph's memory is the next call's.
        means = [self._encode(*given).flatten(0, 1).clone() for given in zip(ids, lengths_of, strict=True)]
        voices = {id(window.voice): window.voice for window in windows}.values()
        known = [*(voice.mel for voice in voices), *(window.mel for window in windows)]
        mels = torch.cat([*known, known[0].new_zeros(1, known[0].shape[1])])
        speakers = torch.stack([voice.speaker for voice in voices])
        gathered = (torch.cat(means)[mean_at], speakers[voice_at], mels[mel_at])
        condition = torch.cat([part.to(self.flow.execution.dtype) for part in gathered], dim=-1)
        z = self.noise.rows(seed, use, place, mels.shape[1], 1)
        shape = (layout.frames,) if layout.rows is None else (layout.rows, layout.frames)
        mel = self.flow.solve(layout, z.view(*shape, -1), condition.view(*shape, -1), steps, between)
        cuts: list[int] = []  # of each row: what is known, the chunk, what is behind it
        for window, room in zip(windows, filled, strict=False):
            before = window.prompt + window.seen
            cuts += before, window.frames, room - before - window.frames
        return list(mel.flatten(0, -2).split([*cuts, *filled[len(windows) :]])[1::3][: len(windows)])

    def _rows(
        self, windows: Sequence[Window], groups: Sequence[int]
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
        """The encoder's batches: token ids [rows, tokens] and lengths [rows]; and where each window's means begin."""
        padded, counts, begins, begun, left = [], [], [], 0, iter(windows)
        for group in groups:
            some = list(itertools.islice(left, group))
            sizes = [len(window.tokens) for window in some]
            rows, tokens = TOKENS.shape(sizes) if self._bucketed else (group, max(sizes))
            ids, lengths = np.zeros((rows, tokens), dtype=np.int64), np.full(rows, tokens)
            for i, window in enumerate(some):
                ids[i, : len(window.tokens)] = window.tokens
                lengths[i] = len(window.tokens)
                begins.append(begun + UPSAMPLING * tokens * i)
            padded.append(ids)
            counts.append(lengths)
            begun += UPSAMPLING * ids.size
        return padded, counts, np.array(begins)

    def _frames(
        self, windows: Sequence[Window], lengths: Sequence[int], means_at: np.ndarray, filled: Sequence[int]
    ) -> tuple[np.ndarray, ...]:
        """For every frame of the layout: seed, use and place of its noise; where its mean, speaker and mel lie."""
        count, voices = len(windows), list({id(window.voice): window.voice for window in windows}.values())
        sizes = np.array([len(voice.mel) for voice in voices])
        number = {id(voice): i for i, voice in enumerate(voices)}
        voice = np.array([number[id(window.voice)] for window in windows])
        prompt, seen, first = (
            np.array([getattr(window, name) for window in windows]) for name in ("prompt", "seen", "first")
        )
        begins = (sizes.cumsum() - sizes)[voice]
        kept_end = int(sizes.sum()) + KEPT_FRAMES * (1 + np.arange(count))
        nothing = int(sizes.sum()) + KEPT_FRAMES * count

        row = np.repeat(np.arange(len(filled)), filled)
        at = np.arange(len(row)) - np.repeat(np.cumsum(filled) - filled, filled)
        row = np.minimum(row, count - 1)  # what is behind the last row is nobody's
        there = (at < np.array(lengths)[row]) & (np.arange(len(row)) < sum(filled[:count]))
        behind = at - prompt[row]
        of_prompt, out = behind < 0, behind < seen[row]
        mel_at = np.where(of_prompt, begins[row] + at, np.where(out, kept_end[row] - seen[row] + behind, nothing))
        return (
            np.array([window.seed for window in windows])[row],
            np.where(of_prompt, PROMPT, GENERATED),
            np.where(of_prompt, at, first[row] + behind),
            np.where(there, means_at[row] + at, 0),
            voice[row],
            np.where(there, mel_at, nothing),
        )
