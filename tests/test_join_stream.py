"""Joining in a stream: the whole is `Joiner`'s, however the pieces are cut."""

from __future__ import annotations

import numpy as np
import pytest

from chatterbox_vllm.audio.join import join_segments
from chatterbox_vllm.audio.join_stream import StreamJoiner

RATE = 24_000


def a_piece(seconds: float, before: float, after: float, seed: int) -> np.ndarray:
    """Noise of speech's loudness with a pause inside, and silence at both ends that is not quite zero."""
    random = np.random.default_rng(seed)
    sound = random.standard_normal(round(seconds * RATE)).astype(np.float32) * 0.1
    sound[len(sound) // 2 :][: RATE // 5] *= 1e-4
    silence = [random.standard_normal(round(s * RATE)).astype(np.float32) * 1e-5 for s in (before, after)]
    return np.concatenate([silence[0], sound, silence[1]])


PIECES = [a_piece(1.0, 0.3, 0.01, 1), a_piece(0.7, 0.4, 0.5, 2), a_piece(0.5, 0.0, 0.0, 3), a_piece(1.0, 0.105, 0.2, 4)]
PAUSES = [0.35, 0.1, 0.0, 0.7]


@pytest.mark.parametrize("size", [100, 240, 2400, 7777, 10**6])
def test_the_whole_is_the_joiners(size: int) -> None:
    joiner, parts = StreamJoiner(RATE), []
    for k, (piece, pause) in enumerate(zip(PIECES, PAUSES, strict=True)):
        for start in range(0, len(piece), size):
            part, ends = piece[start : start + size], start + size >= len(piece)
            parts.append(joiner.add(part, pause, ends, k == len(PIECES) - 1))
    np.testing.assert_array_equal(np.concatenate(parts), join_segments(PIECES, PAUSES, RATE))


def test_sound_goes_out_at_once_and_silence_waits() -> None:
    joiner, piece = StreamJoiner(RATE), a_piece(1.0, 0.0, 0.5, 1)
    out = joiner.add(piece[: RATE // 3], 0.3, False, False)
    assert RATE // 3 - len(out) <= 480  # the last sounding frame
    assert not len(joiner.add(piece[RATE:], 0.3, False, False)[RATE:])
    joiner = StreamJoiner(RATE)
    assert len(joiner.add(piece, 0.3, False, True)) == len(piece)  # nothing follows the last


def test_pieces_of_silence_are_kept() -> None:
    pieces = [np.zeros(1000, np.float32), np.ones(2000, np.float32), np.zeros(1500, np.float32)]
    joiner = StreamJoiner(RATE)
    out = [joiner.add(piece, 0.1, True, k == 2) for k, piece in enumerate(pieces)]
    np.testing.assert_array_equal(np.concatenate(out), join_segments(pieces, [0.1] * 3, RATE))
