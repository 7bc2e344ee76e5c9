"""The random numbers of one utterance, drawn apart from its computation, so that a batch cannot change them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class S3GenNoise:
    """All that is random in speaking one utterance, float32.

    Attributes:
        z: [mels, prompt + generated frames], where the flow starts.
        phase: [harmonics + 1], initial phases in radians, the fundamental's zero.
        source: [harmonics + 1, samples], noise of the harmonic source before its amplitude.
    """

    z: torch.Tensor
    phase: torch.Tensor
    source: torch.Tensor


def draw_noise(
    generator: torch.Generator,
    frames_total: int,
    samples: int,
    device: torch.device | str = "cpu",
    *,
    mels: int = 80,
    harmonics: int = 8,
) -> S3GenNoise:
    """Noise of one utterance; the same state of `generator` gives the same noise.

    Drawn on the generator's own device: with a CPU generator a seed means the same audio on every device.

    Args:
        frames_total: mel frames of prompt and generation.
        samples: audio samples of the generation.
        device: where the noise is put.
    """
    own = {"generator": generator, "device": generator.device}
    z = torch.randn(mels, frames_total, **own)
    phase = (2 * torch.rand(harmonics + 1, **own) - 1) * math.pi
    phase[0] = 0
    source = torch.randn(harmonics + 1, samples, **own)
    return S3GenNoise(z.to(device), phase.to(device), source.to(device))
