"""The watermark in a stream: marked parts together are marked, as long as they were, and without a click."""

from __future__ import annotations

import numpy as np
import pytest

from chatterbox_vllm.audio.watermark import Watermarker, filled_up
from chatterbox_vllm.audio.watermark_stream import StreamPart, make_plans, mark_parts

RATE = 24_000


def vowels(seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 2 * time)) / RATE
    return sum(np.sin(n * pitch) / n for n in range(1, 40)).astype(np.float32) * 0.1


@pytest.mark.parametrize("few_shapes", [False, True])
def test_parts_are_marked_together(few_shapes: bool) -> None:
    watermarker, wave = Watermarker(), vowels(4.0)
    marked, before = [], np.empty(0, np.float32)
    cuts = [0, 5760, 5760, 17_760, 41_760, 41_765, 80_000, len(wave)]
    for first, end in zip(cuts, cuts[1:], strict=False):
        ((part, before),) = mark_parts(watermarker, [StreamPart(before, wave[first:end], end == len(wave))], few_shapes)
        assert len(part) == end - first and part.dtype == np.float32
        marked.append(part)
    whole = np.concatenate(marked)
    assert watermarker.detect(whole, RATE) > 0.9
    assert watermarker.detect(wave, RATE) < 0.5
    assert watermarker.detect(whole[: 2 * RATE], RATE) > 0.9
    mark = whole - wave
    seams = np.array(cuts[1:-1])
    natural = np.abs(np.diff(watermarker.apply(wave) - wave)).max()
    assert np.abs(mark[seams] - mark[seams - 1]).max() <= natural


def test_parts_of_many_utterances_are_marked_as_each_alone() -> None:
    watermarker, wave = Watermarker(), vowels(2.0)
    nothing = np.empty(0, np.float32)
    parts = [
        StreamPart(nothing, wave[:9600], last=False),
        StreamPart(wave[:6000], wave[6000:15_600], last=True),
        StreamPart(nothing, nothing, last=True),
        StreamPart(nothing, wave[20_000:29_600], last=False),
        StreamPart(wave[:6000], wave[6000:6010], last=True),
    ]
    together = mark_parts(watermarker, parts)
    for part, (marked, seen) in zip(parts, together, strict=True):
        ((alone, alone_seen),) = mark_parts(watermarker, [part])
        np.testing.assert_allclose(marked, alone, atol=1e-6)
        np.testing.assert_array_equal(seen, alone_seen)
        assert len(part.part) == 0 or not np.array_equal(marked, part.part)


class Shapes:
    """A net that notes the shapes of what it is given, and adds one to it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def apply_watermark(self, waves: np.ndarray, rate: int) -> list[np.ndarray]:
        self.seen.append(waves.shape)
        return list(waves + 1)


def test_no_part_of_a_stream_has_a_shape_that_was_not_planned_for() -> None:
    watermarker = Watermarker()
    watermarker._net = planned = Shapes()
    make_plans(watermarker, 34_800, 135_600, 4)
    assert len(planned.seen) == len(set(planned.seen)) == 3 * 9
    watermarker._net = met = Shapes()
    lengths = np.random.default_rng(0).integers(28_800, 129_600, 200)
    before = np.zeros(6000, np.float32)
    for count in (1, 2, 3, 4):
        for length in lengths:
            parts = [StreamPart(before, np.zeros(length, np.float32), last=True)] * count
            for marked, _ in mark_parts(watermarker, parts, few_shapes=True):
                assert len(marked) == length and (marked[200:] == 1).all()
    assert set(met.seen) <= set(planned.seen)
    assert all(filled_up(hops) <= 1.25 * hops for hops in range(16, 3000))
