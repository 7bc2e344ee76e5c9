"""Pieces of speech to one waveform, with natural pauses between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chatterbox_vllm.errors import ConfigError

if TYPE_CHECKING:
    import torch

FRAME_SECONDS = 0.01
# A frame this far below its piece's loudest is silence: under soft consonants, over the model's own noise.
SILENCE_DB = -45.0
# Silence that stays on each side of a seam: the decay of a sound, and the fade-in that the model gives a piece.
MARGIN_SECONDS = 0.02
# Short against a consonant, long against a click.
FADE_SECONDS = 0.005


def join_segments(waves: Sequence[torch.Tensor | np.ndarray], pauses: Sequence[float], rate: int) -> np.ndarray:
    """Join pieces of speech in their order, by the rule of `Joiner`.

    Args:
        waves: floats (samples,) or (1, samples).
        pauses: seconds of silence after each piece; the last one's is not used.
        rate: samples a second.

    Returns:
        float32 (samples,). A single piece comes back unchanged.

    Raises:
        ConfigError: no pieces, a wave of another shape, another number of pauses, or a pause that is negative or not
            finite.
    """
    if not waves or len(waves) != len(pauses):
        raise ConfigError(f"give a pause for each of at least one piece of speech, not {len(pauses)} for {len(waves)}")
    joiner, last = Joiner(rate), len(waves) - 1
    return np.concatenate([joiner.add(w, p, i == last) for i, (w, p) in enumerate(zip(waves, pauses, strict=True))])


class Joiner:
    """Joins pieces as they come: what `add` returns, one after the other, is the whole.

    The rule at each seam. A piece's silence is what lies beyond its last (before its first) 10 ms frame whose RMS
    exceeds -45 dB relative to its loudest frame. Both sides' silence together becomes as long as the pause: the earlier
    piece keeps of its own what the pause has room for when 20 ms are left to the later one, the later one keeps of its
    own what is still missing, and zeros between them fill up the rest. Each side keeps up to 20 ms of its own in any
    case, so that no sound is cut off. Both sides fade over 5 ms (raised cosine). All else is kept bit for bit: silence
    inside a piece, the beginning of the first, the end of the last. A piece of zeros is not shortened.

    Args:
        rate: samples a second.
    """

    def __init__(self, rate: int):
        self._rate = rate
        self._margin = round(MARGIN_SECONDS * rate)
        self._fade = round(FADE_SECONDS * rate)
        # What is still missing of the pause after the last piece; None before the first.
        self._missing: int | None = None

    def add(self, wave: torch.Tensor | np.ndarray, pause: float, last: bool) -> np.ndarray:
        """What a piece adds to the whole, float32 (samples,). A piece without samples adds nothing, nor its pause.

        Args:
            wave: floats (samples,) or (1, samples).
            pause: seconds of silence after it; not used for the last.

        Raises:
            ConfigError: a wave of another shape; a pause that is negative or not finite.
        """
        if not 0 <= pause < float("inf"):
            raise ConfigError(f"a pause must be a number of seconds from 0, not {pause!r}")
        piece = _samples(wave)
        if not len(piece):
            return piece
        before, after = _outer_silence(piece, self._rate)
        rise = fall = filled = 0
        begin, end = 0, len(piece)
        if self._missing is not None:
            keep = min(before, max(self._margin, self._missing))
            begin, rise, filled = before - keep, self._fade, max(0, self._missing - keep)
        if not last:
            wanted = round(pause * self._rate)
            keep = min(after, max(self._margin, wanted - self._margin))
            end, fall, self._missing = end - after + keep, self._fade, max(0, wanted - keep)
        return _faded(piece[begin:end], filled, rise, fall)


def _samples(wave: torch.Tensor | np.ndarray) -> np.ndarray:
    samples = np.asarray(wave, dtype=np.float32)
    if samples.ndim == 2 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim != 1:
        raise ConfigError(f"cannot join a wave of shape {samples.shape}; give (samples,) or (1, samples)")
    return samples


def _outer_silence(wave: np.ndarray, rate: int) -> tuple[int, int]:
    """Samples of silence at the beginning and at the end. The last frame may be a short one."""
    frame = max(1, round(FRAME_SECONDS * rate))
    starts = np.arange(0, len(wave), frame)
    sizes = np.minimum(frame, len(wave) - starts)
    power = np.add.reduceat(np.square(wave, dtype=np.float64), starts) / sizes
    sounding = np.flatnonzero(power > power.max() * 10 ** (SILENCE_DB / 10))
    if not len(sounding):
        return 0, 0
    last = sounding[-1]
    return int(starts[sounding[0]]), len(wave) - int(starts[last] + sizes[last])


def _faded(wave: np.ndarray, filled: int, rise: int, fall: int) -> np.ndarray:
    """`filled` zeros and the wave with its ends faded; fades of a very short wave take half of it each."""
    if not filled and not rise and not fall:
        return wave
    out = np.zeros(filled + len(wave), np.float32)
    out[filled:] = wave
    rise, fall = min(rise, len(wave) // 2), min(fall, len(wave) // 2)
    out[filled : filled + rise] *= raised_cosine(rise)
    out[len(out) - fall :] *= raised_cosine(fall)[::-1]
    return out


def raised_cosine(length: int) -> np.ndarray:
    """From just above 0 to just below 1."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / max(1, length))).astype(np.float32)
