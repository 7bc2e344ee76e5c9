"""The random numbers of one utterance: each is a function of the seed and of its own place, of nothing else.

A counter-based generator (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3) has no state that a longer
utterance, another batch or another order of drawing could change. So a rendering that is cut short has the first part
of the whole rendering's noise, and any stretch of frames can be drawn alone. The integers behind the numbers are the
same on every device; the normal numbers made of them differ between devices in the last bit or two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from chatterbox_vllm.cuda.transfer import to_device

# SplitMix64 (Steele, Lea, Flood 2014: Fast splittable pseudorandom number generators), as signed 64-bit integers.
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
# What the numbers are for: each use has streams of its own.
PROMPT, GENERATED, PHASE, SOURCE = range(1, 5)
_WORDS_AT_ONCE = 1 << 17  # 1 MiB: what a CPU works on stays in its cache


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


@dataclass(frozen=True)
class NoiseSource:
    """Draws noise for a model of this size, on this device.

    Attributes:
        mels: channels of the mel.
        harmonics: of the vocoder's source, the fundamental not counted.
        samples_per_frame: audio samples for one mel frame.
        kernels: "torch", or "triton" for one launch a tensor on CUDA; the numbers are the same.
    """

    mels: int
    harmonics: int
    samples_per_frame: int
    device: torch.device
    kernels: Literal["torch", "triton"] = "torch"

    def utterance(self, seed: int, prompt_frames: int, frames: int) -> S3GenNoise:
        """Noise of an utterance of `frames` generated frames behind a prompt of `prompt_frames`.

        The frames of the prompt and the generated ones are counted apart: the noise of generated frame 7 depends
        neither on the prompt's length nor on the number of frames behind it.

        Args:
            seed: 0 to 2**63 - 1.
        """
        drawn = self.draw(seed, 0, frames)
        return S3GenNoise(torch.cat([self.prompt_z(seed, prompt_frames), drawn.z], dim=1), drawn.phase, drawn.source)

    def draw(self, seed: int, first_frame: int, frames: int) -> S3GenNoise:
        """Noise of `frames` generated frames from `first_frame` on, without the prompt's: `z` is [mels, frames].

        The phase is that of the utterance's start, whatever the first frame.
        """
        return S3GenNoise(self.z(seed, first_frame, frames), self.phase(seed), self.source(seed, first_frame, frames))

    def prompt_z(self, seed: int, frames: int) -> torch.Tensor:
        """`z` of a prompt of so many frames: [mels, frames]."""
        return self._normal(seed, PROMPT, self.mels, 0, frames)

    def z(self, seed: int, first_frame: int, frames: int) -> torch.Tensor:
        """`z` of generated frames: [mels, frames]."""
        return self._normal(seed, GENERATED, self.mels, first_frame, frames)

    def source(self, seed: int, first_frame: int, frames: int) -> torch.Tensor:
        """`source` of generated frames: [harmonics + 1, frames * samples_per_frame]."""
        rate = self.samples_per_frame
        return self._normal(seed, SOURCE, self.harmonics + 1, first_frame * rate, frames * rate)

    def phase(self, seed: int) -> torch.Tensor:
        """`phase` of an utterance: [harmonics + 1]."""
        high, _ = _halves(_words(_keys(seed, PHASE, self.harmonics + 1, "cpu"), 0, 1))
        phase = (2 * _uniform(high).squeeze(1) - 1) * math.pi
        phase[0] = 0
        return to_device(phase, self.device)

    def rows(
        self, seeds: torch.Tensor, uses: torch.Tensor, first: torch.Tensor, channels: int, count: int
    ) -> torch.Tensor:
        """See `normal_rows`; launches only, so that a CUDA graph can hold it."""
        if self.kernels == "triton":
            from chatterbox_vllm.s3gen.noise_kernel import normal_rows as by_kernel  # imports triton

            return by_kernel(seeds, uses, first, channels, count)
        return normal_rows(seeds, uses, first, channels, count)

    def phases(self, seeds: torch.Tensor) -> torch.Tensor:
        """`phase` of utterances with these seeds, [rows] int64 on this device: [rows, harmonics + 1]."""
        uses = torch.full_like(seeds, PHASE)
        high, _ = _halves(_words(_row_keys(seeds, uses, self.harmonics + 1), 0, 1))
        phases = (2 * _uniform(high).squeeze(-1) - 1) * math.pi
        return torch.cat([torch.zeros_like(phases[:, :1]), phases[:, 1:]], dim=1)

    def _normal(self, seed: int, use: int, channels: int, first: int, count: int) -> torch.Tensor:
        if self.kernels == "triton":
            from chatterbox_vllm.s3gen.noise_kernel import normal as by_kernel  # imports triton

            return by_kernel(seed, use, channels, first, count, self.device)
        return normal(seed, use, channels, first, count, self.device)


def normal(
    seed: int, use: int, channels: int, first: int, count: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Standard normal numbers [channels, count] float32, those at the places `first`, `first + 1`, ... of each channel.

    Two of them come from one word of 64 bits (Box and Muller 1958): the cosine at even places, the sine at odd ones.
    None exceeds 6.8.
    """
    pairs = (first + count + 1) // 2 - first // 2
    out = torch.empty(channels, 2 * pairs, device=device)
    keys = _keys(seed, use, channels, device)
    few = max(1, _WORDS_AT_ONCE // max(pairs, 1))
    for some, rows in zip(keys.split(few), out.split(few), strict=True):
        high, low = _halves(_words(some, first // 2, pairs))
        radius = _uniform(high).log_().mul_(-2).sqrt_()
        angle = _uniform(low).mul_(2 * math.pi)
        torch.mul(angle.cos(), radius, out=rows[:, ::2])
        torch.mul(angle.sin_(), radius, out=rows[:, 1::2])
    return out[:, first % 2 : first % 2 + count]


def normal_rows(
    seeds: torch.Tensor, uses: torch.Tensor, first: torch.Tensor, channels: int, count: int
) -> torch.Tensor:
    """`normal` for rows of their own seeds, uses and first places, [rows] int64 each: [rows, channels, count]."""
    place = first[:, None] + torch.arange(count, device=first.device)
    words = mixed(_row_keys(seeds, uses, channels)[..., None] + ((place // 2 + 1) * GAMMA)[:, None])
    high, low = _halves(words)
    radius = _uniform(high).log_().mul_(-2).sqrt_()
    angle = _uniform(low).mul_(2 * math.pi)
    return torch.where((place % 2 == 0)[:, None], angle.cos(), angle.sin()).mul_(radius)


def _row_keys(seeds: torch.Tensor, uses: torch.Tensor, channels: int) -> torch.Tensor:
    """`_keys` for rows: [rows, channels]."""
    start = mixed(mixed(seeds.clone()) + uses * GAMMA)
    return mixed(start[:, None] + torch.arange(1, channels + 1, device=seeds.device) * GAMMA)


def _keys(seed: int, use: int, channels: int, device: torch.device | str) -> torch.Tensor:
    """[channels] int64: where each channel's SplitMix64 sequence starts, a hash of seed, use and channel."""
    start = mixed(torch.full((1,), seed, device=device)) + torch.full((1,), use, device=device) * GAMMA
    return mixed(mixed(start) + torch.arange(1, channels + 1, device=device) * GAMMA)


def _words(keys: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """[..., channels, count] int64, all 64 bits random: numbers `first`, ... of each channel's sequence."""
    place = torch.arange(first + 1, first + count + 1, device=keys.device) * GAMMA
    return mixed(keys[..., None] + place)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's hash of int64, which is changed; products wrap around at 64 bits."""
    x ^= (x >> 30) & 0x3FFFFFFFF  # a shift that brings zeros in from the left
    x *= MIX_1
    x ^= (x >> 27) & 0x1FFFFFFFFF
    x *= MIX_2
    x ^= (x >> 31) & 0x1FFFFFFFF
    return x


def _halves(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (words >> 32) & 0xFFFFFFFF, words & 0xFFFFFFFF


def _uniform(bits: torch.Tensor) -> torch.Tensor:
    """32 bits to float32 in (0, 1]."""
    return bits.float().add_(0.5).mul_(2.0**-32)
