"""The vocoder for a batch: mels of many utterances to waveforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from chatterbox_vllm.s3gen.execution import Execution
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.vocoder.hift import HiFT
from chatterbox_vllm.s3gen.vocoder.source import SAMPLE_RATE

if TYPE_CHECKING:
    from chatterbox_vllm.s3gen.vocoder.packed_hift import PackedHiFT  # imports triton

_FADE_SAMPLES = SAMPLE_RATE // 50  # 20 ms of silence, then as long a fade
_ROWS = {"torch": 8, "triton": 32}  # at once on CUDA, by kernels


class MelToWave:
    """Reads the weights of `hift` as they are now; make a new one after they were cast or moved."""

    def __init__(self, hift: HiFT, execution: Execution):
        self.config, self.execution = hift.config, execution
        self.hift = hift
        self._vocoder: HiFT | PackedHiFT = hift
        if execution.vocoder_kernels == "triton":
            from chatterbox_vllm.s3gen.vocoder.packed_hift import PackedHiFT  # imports triton

            self._vocoder = PackedHiFT(hift)

    @property
    def decode(self) -> Callable[..., torch.Tensor]:
        """See `HiFT.decode`."""
        return self._vocoder.decode

    def __call__(
        self, mels: Sequence[torch.Tensor], noises: Sequence[S3GenNoise], device: torch.device
    ) -> list[torch.Tensor]:
        """Waveforms [samples] float32 on `device`, the weights' own, with the fade at the start.

        Args:
            mels: [frames, mels] float32 on `device`.
            noises: one for each mel; their `z` is not used.
        """
        waves: list[torch.Tensor] = [torch.empty(0)] * len(mels)
        for group in self.groups([len(mel) for mel in mels], device):
            lengths = [len(mels[i]) for i in group]
            noise = pad_sequence([noises[i].source.T.to(device) for i in group], batch_first=True)
            spoken = self._vocoder(
                pad_sequence([mels[i] for i in group], batch_first=True).transpose(1, 2),
                lengths,
                phase=torch.stack([noises[i].phase for i in group]).to(device),
                noise=noise.transpose(1, 2),
            )
            for i, wave, length in zip(group, fade_in(spoken), lengths, strict=True):
                waves[i] = wave[: length * self.config.samples_per_frame]
        return waves

    def groups(self, lengths: Sequence[int], device: torch.device) -> list[list[int]]:
        """Indices of rows to pad together: all of them; on CUDA, where a few fill the device, those of like lengths."""
        if not lengths:
            return []
        if device.type != "cuda":
            return [list(range(len(lengths)))]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        size = _ROWS[self.execution.vocoder_kernels]
        return [order[i : i + size] for i in range(0, len(order), size)]


def fade_in(waves: torch.Tensor) -> torch.Tensor:
    """Silence the first 20 ms of waveforms [..., samples] and raise the next 20 ms by a cosine.

    The published remedy against sound of the reference clip spilling over. A shorter waveform gets the part it has.
    """
    gain = fade_gain(torch.arange(min(2 * _FADE_SAMPLES, waves.shape[-1]), device=waves.device))
    return torch.cat([waves[..., : len(gain)] * gain, waves[..., len(gain) :]], dim=-1)


def fade_gain(place: torch.Tensor) -> torch.Tensor:
    """What `fade_in` multiplies samples by, from their places in their utterances; float32 of the same shape."""
    ramp = (torch.cos(torch.linspace(math.pi, 0, _FADE_SAMPLES, device=place.device)) + 1) / 2
    gain = torch.cat([torch.zeros_like(ramp), ramp, torch.ones(1, device=place.device)])
    return gain[place.clamp(max=2 * _FADE_SAMPLES)]
