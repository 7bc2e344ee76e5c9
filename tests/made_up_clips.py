"""Clips from no recording: such as change as speech does, and tones."""

from __future__ import annotations

import math

import numpy as np


def babble(seconds: float, rate: int = 24_000, seed: int = 5) -> np.ndarray:
    """A tone that leaps to another pitch and loudness every 50 ms, with a little noise: float32 [samples]."""
    generator, samples = np.random.default_rng(seed), round(seconds * rate)
    steps = np.arange(samples) // (rate // 20)
    pitch = 150 * 2 ** (5 * generator.random(steps[-1] + 1))[steps]
    loudness = (0.05 + 0.4 * generator.random(steps[-1] + 1))[steps]
    noise = 0.01 * generator.standard_normal(samples)
    return (loudness * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + noise).astype(np.float32)


def tone(rate: int, channels: int = 1, seconds: float = 0.5) -> np.ndarray:
    """Another tone in every channel, float32 (samples, channels), peak 0.5."""
    time = np.arange(round(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * math.pi * 220 * (c + 1) * time) for c in range(channels)], 1).astype(np.float32)
