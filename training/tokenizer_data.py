"""What the speech tokenizer is trained on, in batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from chatterbox_vllm.audio.features import RATE_16K, mel_filterbank, speech_tokenizer_mel
from chatterbox_vllm.checkpoint.config import SpeechTokenizerConfig
from chatterbox_vllm.voices.nets.speech_tokenizer import FRAMES_PER_TOKEN
from training.data import Corpus
from training.features import Flat, corpus_features
from training.frames import Features
from training.phonemes import PhonemeIds
from training.pitch import pitch_of
from training.tokenizer_model import MEL_BINS, MEL_FRAMES


@dataclass(frozen=True)
class Batch:
    """Utterances of alike lengths, on the device; counts of tokens and phonemes are on the CPU.

    Attributes:
        heard: [B, bins, frames], `frames` [B] of them inside; `counts` [B] tokens come of these.
        spoken: [B, 2 tokens, MEL_BINS], and `octaves` [B, 2 tokens].
        phonemes: ids [B, longest], `phoneme_counts` [B] of them inside.
    """

    heard: torch.Tensor
    frames: torch.Tensor
    counts: torch.Tensor
    spoken: torch.Tensor
    octaves: torch.Tensor
    speakers: torch.Tensor
    phonemes: torch.Tensor
    phoneme_counts: torch.Tensor


class Material:
    """A corpus as the tokenizer is trained on it, on the device.

    Attributes:
        heard: log mels of the tokenizer, float16.
        spoken: mels of the flow, float16, less the speaker's mean and divided by each bin's deviation; two frames for
            each token.
        octaves: pitch from the speaker's mean for every frame of `spoken`, NaN where there is none.
    """

    def __init__(self, corpus: Corpus, config: SpeechTokenizerConfig, device: torch.device):
        self.corpus, self.device = corpus, device
        self.speakers = torch.tensor([utterance.speaker for utterance in corpus.utterances], device=device)
        filters = mel_filterbank(RATE_16K, 400, config.num_mels, RATE_16K / 2).to(device)
        (self.heard,) = corpus_features(corpus, device, lambda _, wave: speech_tokenizer_mel(wave, filters).T.half())
        frames = Features.of(corpus, device, MEL_BINS)
        counts = torch.from_numpy(MEL_FRAMES * frames.counts)
        owner = self.speakers.repeat_interleave(counts.to(device))
        _normalise(frames.mels, owner)
        self.spoken = Flat(frames.mels, counts)
        print("pitch of all utterances", flush=True)
        octaves = _octaves(pitch_of(frames.audio, counts.numpy()), owner)
        self.octaves = Flat(octaves, counts)
        self.ids = PhonemeIds(corpus.phoneme_symbols)
        phonemes = [torch.tensor(self.ids.encode(u.phonemes), dtype=torch.int64) for u in corpus.utterances]
        self.phonemes = Flat.of([ids.to(device) for ids in phonemes])

    def batch(self, indices: np.ndarray) -> Batch:
        rows = torch.from_numpy(indices)
        frames, phonemes = self.heard.lengths[rows], self.phonemes.lengths[rows]
        counts = tokens_of(frames)
        longest = int(counts.max())
        on_device = rows.to(self.device, non_blocking=True)
        return Batch(
            heard=self.heard.padded(on_device, longest * FRAMES_PER_TOKEN).transpose(1, 2).float(),
            frames=frames.to(self.device, non_blocking=True),
            counts=counts,
            spoken=self.spoken.padded(on_device, longest * MEL_FRAMES),
            octaves=self.octaves.padded(on_device, longest * MEL_FRAMES),
            speakers=self.speakers[on_device],
            phonemes=self.phonemes.padded(on_device, max(1, int(phonemes.max()))),
            phoneme_counts=phonemes,
        )


def _normalise(mels: torch.Tensor, owner: torch.Tensor) -> None:
    """Take each speaker's mean off [frames, bins], and divide by the deviation of each bin; in place."""
    count = int(owner.max()) + 1
    sums = torch.zeros(count, mels.shape[1], device=mels.device).index_add_(0, owner, mels.float())
    means = sums / owner.bincount(minlength=count).clamp(min=1)[:, None]
    mels -= means[owner].to(mels.dtype)
    mels /= mels.float().std(0).clamp(min=0.1).to(mels.dtype)


def _octaves(hertz: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Pitch [frames] in octaves from the mean of its speaker's, NaN where there is none."""
    count = int(owner.max()) + 1
    octaves, voiced = hertz.clamp(min=1).log2(), hertz > 0
    sums = torch.zeros(count, device=hertz.device).index_add_(0, owner, octaves * voiced)
    means = sums / torch.zeros(count, device=hertz.device).index_add_(0, owner, voiced.float()).clamp(min=1)
    return torch.where(voiced, octaves - means[owner], torch.nan)


def tokens_of(frames: torch.Tensor) -> torch.Tensor:
    """How many tokens so many frames make: two convolutions halve them, rounding up."""
    return -(-frames // FRAMES_PER_TOKEN)
