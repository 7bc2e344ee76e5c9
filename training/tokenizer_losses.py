"""What the speech tokenizer's training makes small."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from training.phonemes import ctc_loss
from training.tokenizer_data import Batch
from training.tokenizer_model import CTC_STEPS, DEVIATION, MEL_BINS, MEL_FRAMES, Trained, within


def levels_penalty(raw: torch.Tensor) -> torch.Tensor:
    """Zero where what is rounded, [n, codes], uses all levels alike and no value follows from another.

    It looks before tanh, since behind it a value that is far out has no gradient that could bring it back.
    """
    centred = raw - raw.mean(0)
    deviations = centred.square().mean(0).sqrt()
    scaled = centred / deviations.clamp(min=1e-3)
    correlations = scaled.T @ scaled / len(raw)
    related = (correlations - correlations.diag().diag()).square().sum() / len(deviations)
    return raw.mean(0).square().mean() + (deviations - DEVIATION).square().mean() + related


def mel_loss(made: torch.Tensor, target: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Mean of absolute and half of squared differences over the frames inside [B, T]; mels are [B, T, bins]."""
    difference = (made.float() - target.float()) * inside[..., None]
    count = inside.sum().clamp(min=1) * target.shape[-1]
    return (difference.abs().sum() + 0.5 * difference.square().sum()) / count


def pitch_loss(made: torch.Tensor, octaves: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Octaves that voiced frames are off, mean over them, and the cross-entropy of voicing.

    Args:
        made: [B, T, 2], see `Heads`.
        octaves: [B, T] from the speaker's mean, NaN where there is no pitch.
        inside: [B, T].
    """
    voiced = octaves.isfinite()
    off = (made[..., 0].float() - octaves.nan_to_num()).abs() * (voiced & inside)
    logits = made[..., 1].float()
    voicing = F.binary_cross_entropy_with_logits(logits, voiced.float(), reduction="none") * inside
    return off.sum() / (voiced & inside).sum().clamp(min=1) + voicing.sum() / inside.sum().clamp(min=1)


def losses(model: Trained, batch: Batch, heard: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of the loss, and the share of tokens that are those of the clean mels ("stable").

    Args:
        heard: the batch's mels, disturbed or not.
    """
    raw, codes, counts = model.quantized(heard, batch.frames)
    with torch.no_grad():
        clean, clean_codes, _ = model.quantized(batch.heard, batch.frames)
    inside = within(counts, codes.shape[1])
    frames = inside.repeat_interleave(MEL_FRAMES, 1)
    logits, made = model.heads(codes, inside, batch.speakers)
    return {
        "ctc": ctc_loss(logits, CTC_STEPS * batch.counts, batch.phonemes, batch.phoneme_counts),
        "mel": mel_loss(made[..., :MEL_BINS], batch.spoken, frames),
        "pitch": pitch_loss(made[..., MEL_BINS:], batch.octaves, frames),
        "levels": levels_penalty(raw[inside]),
        "same": (raw - clean)[inside].square().mean(),
        "stable": (codes.round() == clean_codes.round()).all(-1)[inside].float().mean(),
    }
