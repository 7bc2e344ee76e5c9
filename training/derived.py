"""What trained nets say of a corpus, kept beside their weights for the nets that are trained on it.

All files list the corpus's utterances in its own order, held-out ones included.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

TOKENS = "tokens.npz"  # of training.tokenizer: speech tokens at 25 Hz
VECTORS = "vectors.npz"  # of training.speakers: voice embeddings and x-vectors


def save_rows(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Rows of different lengths, one type."""
    np.savez(path, values=np.concatenate(rows), lengths=np.array([len(row) for row in rows], np.int32))


def load_tokens(out: Path) -> list[np.ndarray]:
    """Speech tokens of every utterance, int16 [n] each, from the directory that `training.tokenizer` wrote to."""
    with np.load(out / TOKENS) as file:
        values, lengths = file["values"], file["lengths"]
    return np.split(values, np.cumsum(lengths)[:-1])


def save_vectors(out: Path, embeddings: np.ndarray, xvectors: np.ndarray) -> None:
    np.savez(out / VECTORS, embeddings=embeddings.astype(np.float16), xvectors=xvectors.astype(np.float16))


def load_vectors(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voice embeddings [N, 256] and x-vectors [N, 192], float32, of every utterance, from `training.speakers`."""
    with np.load(out / VECTORS) as file:
        return file["embeddings"].astype(np.float32), file["xvectors"].astype(np.float32)
