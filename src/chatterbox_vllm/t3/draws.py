"""Uniform numbers for drawing tokens: the same for a seed and a step on every device and in every batch."""

from __future__ import annotations

import numpy as np

# SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Draw number `steps` of the streams that belong to `seeds`, both uint64 [N], as float64 [N] in [0, 1).

    A counter-based generator: a draw depends on nothing but these two numbers, so neither the batch around a request
    nor preemption can change it. Seeds are mixed once first, so that neighbouring seeds give unrelated streams.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is what is wanted
        return (_mix(_mix(seeds) + (steps + np.uint64(1)) * _GAMMA) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))
