"""`Joiner`'s rule for pieces that arrive in parts, whose ends are not known yet."""

from __future__ import annotations

import numpy as np

from chatterbox_vllm.audio.join import FADE_SECONDS, FRAME_SECONDS, MARGIN_SECONDS, SILENCE_DB, raised_cosine


class StreamJoiner:
    """Joins pieces part by part: what `add` returns, one after the other, is the whole.

    The rule is `Joiner`'s, but for one thing: silence is measured against the loudest frame heard so far, of this piece
    and those before it. What may turn out to be a piece's silent end is held back until sound follows it or the piece
    ends.

    Args:
        rate: samples a second.
    """

    def __init__(self, rate: int):
        self._rate = rate
        self._frame = max(1, round(FRAME_SECONDS * rate))
        self._margin = round(MARGIN_SECONDS * rate)
        self._rise = raised_cosine(round(FADE_SECONDS * rate))
        self._loudest = 0.0
        self._missing: int | None = None  # of the pause after the last piece; None before the first
        self._begin_piece()

    def _begin_piece(self) -> None:
        self._held = np.empty(0, np.float32)  # from a frame's start on
        self._first = self._missing is None  # its silent beginning is kept, and does not fade in
        self._began = self._first  # whether the silent beginning is over
        self._out = 0  # samples of the piece that are out

    def add(self, part: np.ndarray, pause: float, ends: bool, last: bool) -> np.ndarray:
        """What a part adds to the whole, float32 (samples,), perhaps nothing yet.

        Args:
            part: float32 (samples,).
            pause: seconds of silence after the piece; not used for the last.
            ends: the piece ends with this part.
            last: the piece is the last.
        """
        held = self._held = np.concatenate([self._held, part])
        sounding = self._sounding(ends)
        filled = 0
        if not self._began:
            if not len(sounding) and not ends:
                return held[:0]
            before = int(sounding[0]) * self._frame if len(sounding) else 0
            missing = self._missing or 0
            keep = min(before, max(self._margin, missing))
            filled, self._began = max(0, missing - keep), True
            held = held[before - keep :]
        # Counted from the end: what comes before the last sounding frame is certain.
        behind = len(self._held) - int(sounding[-1]) * self._frame if len(sounding) else len(self._held)
        if ends:
            after = max(0, behind - self._frame) if len(sounding) else 0
            out = held if last else self._ended(held, after, pause)
        elif last:
            out = held
        else:
            out = held[: max(0, len(held) - behind)]
        rest = held[len(out) :]
        out = np.concatenate([np.zeros(filled, np.float32), self._risen(out)])
        self._held = rest
        if ends:
            self._begin_piece()
        return out

    def _sounding(self, ends: bool) -> np.ndarray:
        """Numbers of the frames of what is held that are no silence. A last short frame counts where the piece ends."""
        frames = -(-len(self._held) // self._frame) if ends else len(self._held) // self._frame
        if not frames:
            return np.empty(0, np.int64)
        starts = np.arange(frames) * self._frame
        sizes = np.minimum(self._frame, len(self._held) - starts)
        sums = np.add.reduceat(np.square(self._held[: starts[-1] + sizes[-1]], dtype=np.float64), starts)
        power = sums / sizes
        self._loudest = max(self._loudest, float(power.max()))
        return np.flatnonzero(power > self._loudest * 10 ** (SILENCE_DB / 10))

    def _ended(self, held: np.ndarray, after: int, pause: float) -> np.ndarray:
        """The rest of a piece that another follows, its silence cut as the pause wants it, its end faded."""
        wanted = round(pause * self._rate)
        keep = min(after, max(self._margin, wanted - self._margin))
        self._missing = max(0, wanted - keep)
        out = held[: len(held) - after + keep].copy()
        fall = min(len(self._rise), len(out) // 2)
        out[len(out) - fall :] *= raised_cosine(fall)[::-1]
        return out

    def _risen(self, out: np.ndarray) -> np.ndarray:
        """With the part of the fade at the piece's beginning that falls on these samples."""
        rise = self._rise[self._out :][: len(out)]
        self._out += len(out)
        if self._first or not len(rise):
            return out
        out = out.copy()
        out[: len(rise)] *= rise
        return out
