"""Stretches of mels to their samples as one function of tensors, which a CUDA graph can hold."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from chatterbox_vllm.s3gen.noise import SOURCE, NoiseSource
from chatterbox_vllm.s3gen.vocoder.batch import MelToWave, fade_gain

# Frames on each side that HiFT's decoder sees from a frame: 13.1 of the mel and 14.3 of the source (measured by
# perturbation in float64, at the published kernels and rates).
SEEN_BY_DECODER = 15
# Of the source that are kept: a stretch begins so many frames before what is out, and the source is made so far ahead.
SOURCE_FRAMES = 2 * SEEN_BY_DECODER
# Of the table: seed; first frame of the stretch in its utterance; and from that frame on, in frames: how far the mel
# goes, the source that was made before, the source that is made now; and where what is kept of it begins.
COLUMNS = 6


class StretchToWave:
    """Launches only: nothing is read on the host, and lengths are a table on the device."""

    def __init__(self, mel_to_wave: MelToWave, noise: NoiseSource):
        self.hift, self.decode, self.noise = mel_to_wave.hift, mel_to_wave.decode, noise

    def __call__(
        self, mel: torch.Tensor, source: torch.Tensor, cycles: torch.Tensor, table: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Samples [rows, samples] from the stretch's first frame on; what is kept of source and cycles; and [rows, 2]
        bool, whether the mel and the samples are finite.

        Args:
            mel: [rows, frames, mels] float32, zeros in the padding.
            source, cycles: see `VocoderState`, stacked.
            table: [COLUMNS, rows] int64.
        """
        rows, frames, _ = mel.shape
        rate = self.hift.config.samples_per_frame
        seed, first, known, before, sourced, kept_from = table.unbind(0)
        by_channel = mel.transpose(1, 2)
        frame = torch.arange(frames, device=mel.device)
        new = (frame >= before[:, None]) & (frame < sourced[:, None])
        f0 = self.hift.pitch_together(by_channel, known).masked_fill(~new, 0)
        noise = self.noise.rows(seed, torch.full_like(seed, SOURCE), first * rate, cycles.shape[1], frames * rate)
        since = before.clamp(max=frames - 1)  # where there is no new frame, whatever is made is not taken
        made, cycles = self.hift.m_source.continued(f0, self.noise.phases(seed), noise, cycles, since)

        sample = torch.arange(frames * rate, device=mel.device)
        old = source[:, : frames * rate]
        old = F.pad(old, (0, frames * rate - old.shape[1]))
        source = torch.where(sample < (before * rate)[:, None], old, made)
        wave = self.decode(by_channel, sourced, source) * fade_gain(first[:, None] * rate + sample)

        at = (kept_from[:, None] + torch.arange(SOURCE_FRAMES, device=mel.device)).clamp(max=frames - 1)
        kept = source.view(rows, frames, rate).gather(1, at[..., None].expand(-1, -1, rate))
        finite = torch.stack([mel.isfinite().flatten(1).all(1), wave.isfinite().all(1)], dim=1)
        return wave, kept.flatten(1), cycles, finite
