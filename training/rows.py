"""What the flow is trained on: rows of a prompt and what follows it, both stretches of speech by one speaker.

At inference the flow continues a reference clip: tokens of the clip and of the utterance stand in one row, the clip's
mel is given. So a row joins the beginning of one utterance with another one of the same speaker, or is one utterance of
which the first part is the prompt. All numbers are tokens; a mel has two frames for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from chatterbox_vllm.s3gen.prompt import MOST_PROMPT_TOKENS

_JOINED = 0.5  # share of rows that join two utterances
_WHOLE = 0.2  # share of the other rows that have no prompt
_LARGEST_SHARE = 0.6  # of an utterance that is its own prompt
_FEWEST_PROMPT_TOKENS = 10
_ROUNDING = 16  # lengths of batches are multiples of it, so that few shapes come up


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one batch, int64 [rows] each.

    Attributes:
        prompt_begin, prompt_count: the prompt's tokens in the corpus.
        begin, count: the tokens that follow it.
        voice: the utterance whose x-vector is the speaker's.
        length: of the batch, at least prompt and rest of every row.
    """

    prompt_begin: np.ndarray
    prompt_count: np.ndarray
    begin: np.ndarray
    count: np.ndarray
    voice: np.ndarray
    length: int


def rows_of(
    utterances: np.ndarray, speakers: np.ndarray, counts: np.ndarray, begins: np.ndarray, rng: np.random.Generator
) -> Rows:
    """A row for each of `utterances`, in their order.

    Args:
        utterances: indices of those that are trained on.
        speakers, counts, begins: of all utterances: who speaks, how many tokens, and where they begin.
    """
    other = _others(utterances, speakers, rng)
    joined = rng.random(len(utterances)) < _JOINED
    longest = rng.integers(MOST_PROMPT_TOKENS // 10, MOST_PROMPT_TOKENS + 1, len(utterances))
    of_other = np.minimum(counts[other], longest)
    own = (counts[utterances] * rng.uniform(0, _LARGEST_SHARE, len(utterances))).astype(np.int64)
    own[(own < _FEWEST_PROMPT_TOKENS) | (rng.random(len(utterances)) < _WHOLE)] = 0
    own = np.minimum(own, MOST_PROMPT_TOKENS)
    prompt_count = np.where(joined, of_other, own)
    taken = np.where(joined, 0, own)
    count = counts[utterances] - taken
    return Rows(
        prompt_begin=begins[np.where(joined, other, utterances)],
        prompt_count=prompt_count,
        begin=begins[utterances] + taken,
        count=count,
        voice=other,
        length=int((prompt_count + count).max()),
    )


def _others(utterances: np.ndarray, speakers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each of `utterances` another one among them by its speaker; itself where the speaker has no other."""
    order = np.argsort(speakers[utterances], kind="stable")
    sorted_speakers = speakers[utterances][order]
    first = np.searchsorted(sorted_speakers, sorted_speakers, side="left")
    size = np.searchsorted(sorted_speakers, sorted_speakers, side="right") - first
    step = rng.integers(1, np.maximum(size, 2))
    place = first + (np.arange(len(order)) - first + step) % size
    other = np.empty_like(utterances)
    other[order] = utterances[order][place]
    return other


def batches(
    utterances: np.ndarray,
    speakers: np.ndarray,
    counts: np.ndarray,
    begins: np.ndarray,
    tokens: int,
    rng: np.random.Generator,
) -> Iterator[Rows]:
    """Batches without end, each of rows of like lengths and of at most `tokens` tokens, padding included."""
    while True:
        rows = rows_of(utterances, speakers, counts, begins, rng)
        lengths = rows.prompt_count + rows.count
        # A little disorder, so that batches are not the same from epoch to epoch.
        order = np.argsort(lengths * rng.uniform(0.95, 1.05, len(lengths)))
        cut, begin = [], 0
        while begin < len(order):
            # Sorted upwards: how many rows fit is decided by the longest, which is about the last.
            size = max(1, tokens // _rounded(int(lengths[order[begin]])))
            size = max(1, min(size, tokens // _rounded(int(lengths[order[begin : begin + size]].max()))))
            cut.append(order[begin : begin + size])
            begin += size
        for i in rng.permutation(len(cut)):
            some = cut[i]
            yield Rows(
                rows.prompt_begin[some],
                rows.prompt_count[some],
                rows.begin[some],
                rows.count[some],
                rows.voice[some],
                _rounded(int(lengths[some].max())),
            )


def _rounded(length: int) -> int:
    return -(-length // _ROUNDING) * _ROUNDING
