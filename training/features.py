"""Features of a whole corpus, computed once and kept on the device; batches are cut out of them there.

Everything of one kind lies in one flat tensor, utterance after utterance, so that a batch is a single gather.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from chatterbox_vllm.audio.features import RATE_16K, RATE_24K
from chatterbox_vllm.audio.resample import sinc_resample
from training.data import Corpus

_FULL_SCALE = 32_768.0
_LOG_SECONDS = 10.0


class Flat:
    """Rows of different lengths in one tensor.

    Args:
        values: [all lengths together, ...].
        lengths: of the rows, int64 on the CPU.
    """

    def __init__(self, values: torch.Tensor, lengths: torch.Tensor):
        self.values, self.lengths = values, lengths
        self._begin = (self.lengths.cumsum(0) - self.lengths).to(self.values.device)
        self._lengths = self.lengths.to(self.values.device)

    @classmethod
    def of(cls, rows: Sequence[torch.Tensor]) -> Flat:
        """Of rows [length, ...] of one type."""
        return cls(torch.cat(list(rows)), torch.tensor([len(row) for row in rows]))

    def row(self, index: int) -> torch.Tensor:
        begin = int(self.lengths[:index].sum())
        return self.values[begin : begin + int(self.lengths[index])]

    def padded(self, rows: torch.Tensor, longest: int) -> torch.Tensor:
        """[B, longest, ...] of the rows numbered [B] on the device; zero past the end of each."""
        steps = torch.arange(longest, device=self.values.device)
        inside = steps < self._lengths[rows][:, None]
        taken = self.values[(self._begin[rows][:, None] + steps).clamp(max=len(self.values) - 1)]
        return taken * inside.view(*inside.shape, *(1,) * (taken.dim() - 2)).to(taken.dtype)

    def crops(self, rows: torch.Tensor, length: int, repeat: bool) -> torch.Tensor:
        """[B, length, ...]: a random stretch of every row; a shorter one starts again, or is followed by zeros."""
        own = self._lengths[rows][:, None]
        first = (torch.rand(len(rows), 1, device=own.device) * (own - length + 1).clamp(min=1)).long()
        places = first + torch.arange(length, device=own.device)
        taken = self.values[self._begin[rows][:, None] + places % own]
        if repeat:
            return taken
        return taken * (places < own).view(*places.shape, *(1,) * (taken.dim() - 2)).to(taken.dtype)


def waves_24k(corpus: Corpus, device: torch.device) -> Iterator[torch.Tensor]:
    """Every utterance's audio, float32 [samples] at 24 kHz on the device; says now and then how far it is."""
    said = time.monotonic()
    for index in range(len(corpus.utterances)):
        if time.monotonic() - said > _LOG_SECONDS:
            said = time.monotonic()
            print(f"features of {index} of {len(corpus.utterances)} utterances", flush=True)
        audio = torch.from_numpy(np.array(corpus.audio(index)))
        yield audio.to(device).float() / _FULL_SCALE


def to_16k(wave: torch.Tensor) -> torch.Tensor:
    """From 24 kHz to 16 kHz, as enrolment does it for the flow's prompt."""
    return sinc_resample(wave, RATE_24K, RATE_16K)


@torch.no_grad()
def corpus_features(
    corpus: Corpus, device: torch.device, *makers: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> list[Flat]:
    """One `Flat` for every maker, which gets an utterance at 24 kHz and at 16 kHz and gives [frames, ...]."""
    kinds: list[list[torch.Tensor]] = [[] for _ in makers]
    for wave in waves_24k(corpus, device):
        wave_16k = to_16k(wave)
        for kept, maker in zip(kinds, makers, strict=True):
            kept.append(maker(wave, wave_16k))
    return [Flat.of(rows) for rows in kinds]


def batches(
    lengths: Sequence[int] | np.ndarray, budget: int, random: np.random.Generator, spread: float = 0.1
) -> list[np.ndarray]:
    """Indices into `lengths` in batches of alike lengths, in random order: rows times the longest is at most `budget`.

    Args:
        spread: the standard deviation of the noise on the lengths that they are sorted by, as a share of them, so that
            batches differ from one epoch to the next.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(lengths * np.exp(spread * random.standard_normal(len(lengths))))
    groups: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, int(lengths[index]))
        if groups[-1] and longest * (len(groups[-1]) + 1) > budget:
            groups.append([])
            longest = int(lengths[index])
        groups[-1].append(int(index))
    random.shuffle(groups)
    return [np.array(group) for group in groups if group]


def endless(make: Callable[[], list]) -> Iterator:
    """Items of `make()`, which is called again whenever they are used up."""
    while True:
        yield from make()
