"""What a recording says, and where it is cut where it is rendered in chunks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# What a recording's chunks are filled up to, in speech tokens. The first are short, so that a listener hears something
# soon; a window of the later ones is no longer than the longest utterance.
_SIZES = (25, 50, 100, 200, 500)
# A chunk ends where the recording is quietest within its last part of this share.
_SEARCHED = 0.4


@dataclass(frozen=True)
class Source:
    """What a recording says.

    Attributes:
        tokens: speech tokens, 25 a second.
        ends: where its chunks end, in tokens, ascending; the last is `len(tokens)`.
    """

    tokens: tuple[int, ...]
    ends: tuple[int, ...]


def quiet_ends(levels: np.ndarray) -> tuple[int, ...]:
    """Where a recording is cut into chunks: at its quietest places, where a seam is least heard.

    Chunks are up to 25, 50, 100, 200, then 500 tokens long (20 s), and at least three fifths of that. The last is what
    is left: at least a fifth of the size before it, and up to a fifth more than its own.

    Args:
        levels: the recording's mean power at each token, [n].
    """
    count, at, ends = len(levels), 0, []
    for size in (*_SIZES, *(_SIZES[-1] for _ in range(count // 100))):
        if count - at <= size * (1 + _SEARCHED / 2):  # a short rest goes with the chunk before it
            break
        places = np.arange(at + round(size * (1 - _SEARCHED)), at + size + 1)
        at = int(places[np.argmin(levels[places - 1] + levels[places])])
        ends.append(at)
    return (*ends, count)
