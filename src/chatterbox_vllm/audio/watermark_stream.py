"""The PerTh watermark in a stream: each part is marked as it comes, in sight of what came before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatterbox_vllm.audio.watermark import HOP_SAMPLES, SAMPLE_RATE, Watermarker, filled_up

# What the network sees before a part: longer than its windows and kernels reach.
_CONTEXT_SAMPLES = SAMPLE_RATE // 4
# The mark fades in and out at a part's inner edges, where the next part's differs, so that no seam clicks.
_FADE_SAMPLES = SAMPLE_RATE // 200


@dataclass(frozen=True, eq=False)
class StreamPart:
    """The next part of an utterance.

    Attributes:
        before: float32, what `mark_parts` gave for the part before it; empty at the start.
        part: float32 (samples,) at 24 kHz.
        last: whether the utterance ends with it.
    """

    before: np.ndarray
    part: np.ndarray
    last: bool


def mark_parts(
    watermarker: Watermarker, parts: Sequence[StreamPart], few_shapes: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mark the next parts of some utterances.

    Args:
        few_shapes: see `Watermarker.apply_all`.

    Returns:
        For each the marked part, and what the next call is given as `before`.
    """
    seen = [np.concatenate([own.before, own.part]) for own in parts]
    waves = [wave if len(own.part) else own.part for own, wave in zip(parts, seen, strict=True)]
    marked = watermarker.apply_all(waves, few_shapes)
    return [
        (_faded(own, wave[len(own.before) :]), known[-_CONTEXT_SAMPLES:]) if len(own.part) else (own.part, known)
        for own, wave, known in zip(parts, marked, seen, strict=True)
    ]


def make_plans(watermarker: Watermarker, shortest: int, longest: int, most: int) -> None:
    """Mark silence of every shape that parts of `shortest` to `longest` samples, up to `most` together, are filled to.

    Libraries of a card keep their plans for the calling thread.
    """
    sizes = {filled_up(hops) for hops in range(shortest // HOP_SAMPLES, longest // HOP_SAMPLES + 1)}
    for hops in sorted(sizes):
        for doublings in range((most - 1).bit_length() + 1):
            watermarker.apply_all([np.zeros(hops * HOP_SAMPLES, np.float32)] * (1 << doublings), few_shapes=True)


def _faded(own: StreamPart, marked: np.ndarray) -> np.ndarray:
    """A part with its mark faded in and out where other parts join."""
    mark = marked - own.part
    fade = min(_FADE_SAMPLES, len(mark) // 2)
    rise = (np.arange(fade, dtype=np.float32) + 0.5) / max(1, fade)
    if len(own.before):
        mark[:fade] *= rise
    if not own.last:
        mark[len(mark) - fade :] *= rise[::-1]
    return own.part + mark
