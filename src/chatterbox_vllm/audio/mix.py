"""Decoded pieces of sound, of many channels, to one mono wave."""

from __future__ import annotations

import numpy as np
import soxr

# Rates up to this one are kept; higher ones become the other, which is enough for any voice.
HIGHEST_KEPT_RATE = 96_000
_LOWERED_RATE = 48_000
# Pieces are gathered to blocks: a hostile file has pieces of one sample.
_BLOCK_SAMPLES = 1 << 16
# Channels that have nothing in common average to a power of 1 / channels of one's. So far below that they cancel.
_CANCELLING = 0.02


class Mix:
    """The average of all channels, or one channel, of pieces that come one after the other.

    Args:
        rate: of the pieces, in Hz.
        channels: of the pieces.
        channel: the one to take; None averages all.
    """

    def __init__(self, rate: int, channels: int, channel: int | None = None):
        self.source_rate = rate
        self.channels = channels
        self._channel = channel
        self._samples = 0
        self._energies = np.zeros(channels)
        self._mixed_energy = 0.0
        self._pending: list[np.ndarray] = []
        self._pending_samples = 0
        self._blocks: list[np.ndarray] = []
        self.rate = rate
        self._resampler: soxr.ResampleStream | None = None
        if rate > HIGHEST_KEPT_RATE:
            self.rate = _LOWERED_RATE
            self._resampler = soxr.ResampleStream(rate, self.rate, 1, dtype="float32", quality="HQ")

    @property
    def seconds(self) -> float:
        """Of all pieces so far."""
        return self._samples / self.source_rate

    def add(self, piece: np.ndarray) -> None:
        """Add a piece, float32 (channels, samples)."""
        self._samples += piece.shape[1]
        if len(piece) == 1:
            mono = piece[0]
        else:
            mono = piece.mean(axis=0) if self._channel is None else piece[self._channel]
            self._energies += np.square(piece, dtype=np.float64).sum(axis=1)
            self._mixed_energy += float(np.square(mono, dtype=np.float64).sum())
        self._pending.append(mono)
        self._pending_samples += len(mono)
        if self._pending_samples >= _BLOCK_SAMPLES:
            self._gather()

    def wave(self) -> np.ndarray:
        """All of it, float32 (samples,) at `rate`; nothing can be added any more."""
        self._gather(last=True)
        whole = np.empty(sum(map(len, self._blocks)), np.float32)
        end = len(whole)
        while self._blocks:  # each is freed once it is copied
            block = self._blocks.pop()
            whole[end - len(block) : end] = block
            end -= len(block)
        return whole

    @property
    def loudest(self) -> int:
        """The channel with the most energy."""
        return int(self._energies.argmax())

    @property
    def cancels(self) -> bool:
        """Whether an average of channels lost nearly all that they hold, as of a channel and its negative."""
        if self._channel is not None or self.channels == 1:
            return False
        return self.channels * self._mixed_energy < _CANCELLING * float(self._energies.mean())

    def _gather(self, last: bool = False) -> None:
        block = np.concatenate([*self._pending, np.empty(0, np.float32)])
        self._pending, self._pending_samples = [], 0
        if self._resampler is not None:
            block = self._resampler.resample_chunk(block, last=last)
        self._blocks.append(block)
