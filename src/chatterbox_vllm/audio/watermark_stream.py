"""The PerTh watermark in a stream: each part is marked as it comes, in sight of what came before it."""

from __future__ import annotations

import numpy as np

from chatterbox_vllm.audio.watermark import SAMPLE_RATE, Watermarker

# What the network sees before a part: longer than its windows and kernels reach.
_CONTEXT_SAMPLES = SAMPLE_RATE // 4
# The mark fades in and out at a part's inner edges, where the next part's differs, so that no seam clicks.
_FADE_SAMPLES = SAMPLE_RATE // 200


def mark_next(
    watermarker: Watermarker, before: np.ndarray, part: np.ndarray, last: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mark the next part of an utterance.

    Args:
        before: float32, what the previous call gave for it; empty at the start.
        part: float32 (samples,) at 24 kHz.
        last: whether the utterance ends with it.

    Returns:
        The marked part, and what the next call is given as `before`.
    """
    seen = np.concatenate([before, part])
    if not len(part):
        return part, seen
    mark = watermarker.apply(seen)[len(before) :] - part
    fade = min(_FADE_SAMPLES, len(part) // 2)
    rise = (np.arange(fade, dtype=np.float32) + 0.5) / max(1, fade)
    if len(before):
        mark[:fade] *= rise
    if not last:
        mark[len(mark) - fade :] *= rise[::-1]
    return part + mark, seen[-_CONTEXT_SAMPLES:]
