"""What the trained tokenizer and speaker nets say of a corpus, as flow and T3 are trained on it.

A directory of four arrays, a row or a stretch for each utterance of the corpus, in its order:

- ``tokens.npy``: int16, the speech tokens of all utterances one after the other;
- ``counts.npy``: int32 [utterances], tokens of each, see `tokens_of`;
- ``xvectors.npy``: float32 [utterances, size], as the x-vector net gives them, not normalised;
- ``embeddings.npy``: float32 [utterances, size], of the voice encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from typing_extensions import Self

from chatterbox_vllm.audio.features import HOP_16K
from chatterbox_vllm.voices.nets.speech_tokenizer import FRAMES_PER_TOKEN

CODES = "codes"  # the directory's name, beside those of the nets
CODEBOOK = "codebook"  # beside the dimensions of a speech tokenizer that came from a model: the name of its tokens
SAMPLES_PER_TOKEN = 960  # at 24 kHz
_ARRAYS = {"tokens": np.int16, "counts": np.int32, "xvectors": np.float32, "embeddings": np.float32}


@dataclass(frozen=True, eq=False)
class Codes:
    """The arrays of such a directory."""

    tokens: np.ndarray
    counts: np.ndarray
    xvectors: np.ndarray
    embeddings: np.ndarray

    def __post_init__(self) -> None:
        if self.counts.sum() != len(self.tokens):
            raise ValueError(f"counts.npy speaks of {self.counts.sum()} tokens, tokens.npy holds {len(self.tokens)}")
        for name in ("xvectors", "embeddings"):
            if len(getattr(self, name)) != len(self.counts):
                raise ValueError(f"{name}.npy has {len(getattr(self, name))} rows for {len(self.counts)} utterances")

    @cached_property
    def begins(self) -> np.ndarray:
        """int64 [utterances]: where each one's tokens begin."""
        return np.cumsum(self.counts, dtype=np.int64) - self.counts

    def of(self, utterance: int) -> np.ndarray:
        """The tokens of one utterance, int16."""
        return self.tokens[self.begins[utterance] :][: self.counts[utterance]]

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises `FileNotFoundError` naming what is missing, `ValueError` where the arrays do not fit together."""
        return cls(**{name: np.load(directory / f"{name}.npy") for name in _ARRAYS})

    def write(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, kind in _ARRAYS.items():
            np.save(directory / f"{name}.npy", getattr(self, name).astype(kind))


def save_tokens(directory: Path, tokens: Sequence[np.ndarray]) -> None:
    """Write what `training.tokenizer` says of a corpus: every utterance's speech tokens [n]."""
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "tokens.npy", np.concatenate(tokens).astype(np.int16))
    np.save(directory / "counts.npy", np.array([len(row) for row in tokens], np.int32))


def save_vectors(directory: Path, xvectors: np.ndarray, embeddings: np.ndarray) -> None:
    """Write what `training.speakers` says of a corpus, [utterances, size] each."""
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "xvectors.npy", xvectors.astype(np.float32))
    np.save(directory / "embeddings.npy", embeddings.astype(np.float32))


def tokens_of(samples: int) -> int:
    """Speech tokens of an utterance of that many samples at 24 kHz, resampled to 16 kHz: one for 40 ms, the last maybe
    of less; a rest under 10 ms is left out."""
    return -(-(-(-samples * 2 // 3) // HOP_16K) // FRAMES_PER_TOKEN)
