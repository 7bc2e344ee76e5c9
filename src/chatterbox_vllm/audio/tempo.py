"""Speech faster or slower at the same pitch, while it comes."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from chatterbox_vllm.errors import ConfigError

SLOWEST, FASTEST = 0.25, 4.0
# FFmpeg's filter goes no slower by itself; two of them in a row do. Beyond 2 it would skip samples instead of blending
# them, so that faster speech takes two as well.
_LEAST, _MOST = 0.5, 2.0
_TAIL_SECONDS = 0.25  # several windows


class Tempo:
    """Changes the tempo of a mono wave by FFmpeg's `atempo` (overlapping pieces, added where they fit best).

    Args:
        speed: 0.25 to 4; 2 is twice as fast.
        rate: in Hz.

    Raises:
        ConfigError: the speed is out of range.
    """

    def __init__(self, speed: float, rate: int):
        if not SLOWEST <= speed <= FASTEST:
            raise ConfigError(f"speed must be a number from {SLOWEST:g} to {FASTEST:g}, not {speed!r}")
        self._rate, self._speed = rate, speed
        self._fed = self._pushed = self._given = 0
        self._graph: Any = None if speed == 1 else _graph(speed, rate)

    def feed(self, wave: np.ndarray) -> np.ndarray:
        """What is ready after this part of the wave, float32 [samples] both; there may be nothing yet."""
        if self._graph is None or not len(wave):
            return wave if self._graph is None else _EMPTY
        self._push(wave)
        self._fed += len(wave)
        return self._pulled()

    def finish(self) -> np.ndarray:
        """The last samples, so that all together last as long as the speed says. Call it once."""
        if self._graph is None or not self._fed:
            return _EMPTY
        left = max(0, round(self._fed / self._speed) - self._given)
        # The filter drops what does not fill its window.
        self._push(np.zeros(round(_TAIL_SECONDS * self._rate * max(1.0, self._speed)), np.float32))
        self._graph.push(None)
        rest = self._pulled()[:left]
        return np.concatenate([rest, np.zeros(left - len(rest), np.float32)])

    def _push(self, wave: np.ndarray) -> None:
        import av

        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(wave[None], dtype=np.float32), format="flt", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._pushed, Fraction(1, self._rate)
        self._pushed += len(wave)
        self._graph.push(frame)

    def _pulled(self) -> np.ndarray:
        parts = list(self._parts())
        wave = np.concatenate(parts) if parts else _EMPTY
        self._given += len(wave)
        return wave

    def _parts(self) -> Iterator[np.ndarray]:
        import av

        while True:
            try:
                yield self._graph.pull().to_ndarray()[0]
            except (av.BlockingIOError, av.EOFError):  # it wants more, or has given all
                return


_EMPTY = np.zeros(0, np.float32)


def _graph(speed: float, rate: int) -> Any:
    import av

    graph: Any = av.filter.Graph()
    before = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    for factor in _factors(speed):
        step = graph.add("atempo", f"{factor:.6f}")
        before.link_to(step)
        before = step
    before.link_to(graph.add("abuffersink"))
    graph.configure()
    return graph


def _factors(speed: float) -> list[float]:
    return [speed] if _LEAST <= speed <= _MOST else [speed**0.5] * 2
