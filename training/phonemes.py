"""What the speech tokenizer is taught to tell apart: phonemes, by connectionist temporal classification (CTC).

Graves et al., 2006.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

BLANK = 0
# Marks of stress and length say how a phoneme is spoken; that is left to the reconstruction.
_MARKS = "ˈˌː"


class PhonemeIds:
    """Phonemes as ids from 1 on; 0 is CTC's blank. Spaces, punctuation and stress marks have none.

    Args:
        symbols: of a corpus; see `Corpus.phoneme_symbols`.
    """

    def __init__(self, symbols: Sequence[str]):
        kept = [s for s in symbols if s.isalpha() and s not in _MARKS]
        self._ids = {symbol: i for i, symbol in enumerate(kept, start=BLANK + 1)}

    def __len__(self) -> int:
        """How many there are, the blank included."""
        return len(self._ids) + 1

    def encode(self, phonemes: str) -> list[int]:
        return [self._ids[s] for s in phonemes if s in self._ids]


def ctc_loss(logits: torch.Tensor, steps: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean over the utterances of the negative log likelihood for each phoneme.

    Args:
        logits: [B, T, C].
        steps: how many of the T each has, int64 [B] on the CPU, which spares the device a wait.
        targets: ids, int64 [B, longest].
        counts: how many of these each has, int64 [B] on the CPU.
    """
    log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)
    losses = F.ctc_loss(log_probabilities, targets, steps, counts, blank=BLANK, reduction="none", zero_infinity=True)
    return (losses / counts.clamp(min=1).to(losses.device, non_blocking=True)).mean()


def greedy(logits: torch.Tensor, steps: torch.Tensor) -> list[list[int]]:
    """The likeliest ids of every row, repetitions and blanks taken out."""
    best = logits.argmax(-1).cpu().numpy()
    decoded = []
    for row, count in zip(best, steps.tolist(), strict=True):
        row = row[:count]
        changes = np.concatenate(([True], row[1:] != row[:-1])) if count else np.zeros(0, bool)
        decoded.append(row[changes & (row != BLANK)].tolist())
    return decoded


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Least number of insertions, deletions and substitutions from one to the other (Levenshtein)."""
    other = np.asarray(b)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, symbol in enumerate(a, start=1):
        best = np.minimum(row[:-1] + (other != symbol), row[1:] + 1)
        # An insertion costs one for every step to the right: a running minimum of the costs less their steps.
        row = np.minimum.accumulate(np.concatenate(([i], best)) - steps) + steps
    return int(row[-1])
