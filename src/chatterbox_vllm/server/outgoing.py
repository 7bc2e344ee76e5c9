"""From the engine's samples to what is sent: at an order's speed, rate and format, and how well it keeps pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np

from chatterbox_vllm.audio.resample import StreamResampler, resample
from chatterbox_vllm.audio.streams import encode_whole, stream_encoder
from chatterbox_vllm.audio.tempo import Tempo
from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.server.order import Order


class Pace:
    """Counts how often a player at normal speed would have run dry."""

    def __init__(self, rate: int):
        self._rate, self._started = rate, time.monotonic()
        self._dry_at: float | None = None
        self.samples = self.underruns = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the order came."""
        return time.monotonic() - self._started

    def add(self, samples: int) -> None:
        """Audio has come."""
        now = time.monotonic()
        if self._dry_at is not None and now > self._dry_at:
            self.underruns += 1
        self._dry_at = max(now, self._dry_at or now) + samples / self._rate
        self.samples += samples


class Outgoing:
    """From the engine's samples to the bytes of an order's format, part by part."""

    def __init__(self, order: Order):
        self._resampler = StreamResampler(SAMPLE_RATE, order.sample_rate)
        self._encoder = stream_encoder(order.format, order.sample_rate)

    def feed(self, wave: np.ndarray) -> bytes:
        """What can be sent once this wave, float32 [samples] at the engine's rate, has come."""
        return self._encoder.feed(self._resampler.feed(wave))

    def finish(self) -> bytes:
        """What is left to be sent."""
        return self._encoder.feed(self._resampler.finish()) + self._encoder.finish()


def encoded(order: Order, wave: np.ndarray, rate: int) -> tuple[bytes, int]:
    """A whole answer's bytes, and how many samples it has at its speed.

    Args:
        wave: float32 [samples].
        rate: the wave's, in Hz.
    """
    tempo = Tempo(order.speed, rate)
    changed = np.concatenate([tempo.feed(wave), tempo.finish()])
    return encode_whole(order.format, resample(changed, rate, order.sample_rate), order.sample_rate), len(changed)


async def in_thread(order: Order, call: Callable[..., bytes], *arguments: np.ndarray) -> bytes:
    """Encode where it does not keep others waiting; plain samples take no time."""
    if order.format in ("pcm", "wav") and order.sample_rate == SAMPLE_RATE:
        return call(*arguments)
    return await asyncio.to_thread(call, *arguments)
