"""Trains the vocoder: mel to waveform.

    python -m training.hift --corpus CORPUS --out OUT --seconds 360 --device cuda --resume

First by spectral distances alone, then against discriminators too. Its pitch predictor is taught with the pitch of the
recordings. With --flow and --tokens, the mels are those that a trained flow makes of the corpus's tokens. At the end
the averaged weights are in OUT/weights.

On a GPU, a step is recorded as a CUDA graph; --eager runs it operator by operator.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.audio.features import HOP_24K
from chatterbox_vllm.checkpoint.config import HiFTConfig, S3GenConfig
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.vocoder.hift import HiFT, ResBlock
from training.data import Corpus
from training.discriminators import Discriminators, discriminator_loss, generator_losses
from training.frames import Features
from training.graphs import Noted, RepeatedStep
from training.loop import Average, Run, add_arguments, autocast, prepare, rate_at, set_rate
from training.pitch import pitch_of
from training.small import SMALL
from training.spectral import SpectralDistance
from training.weights import keep_weights, warm_start

_BETAS = (0.8, 0.99)
_CLIP = 1e3
# Weights of the parts of the vocoder's loss.
_MELS, _SPECTRA, _ADVERSARIAL, _MATCHING, _PITCH = 15.0, 5.0, 4.0, 12.0, 1.0
_HZ = 100.0  # the unit of the pitch's loss
_PITCH_SCALE = 30.0  # of the learning rate of the layer that speaks in Hz
_PREDICTED = 0.5  # share of rows that the predicted pitch excites once the discriminators are there
_QUIET = -4.0  # log magnitude of the first spectra
_FIRST_RESIDUAL = 0.2
# How much of each harmonic the source has. It is not learnt: it shrank before the vocoder could use it, in one training
# of three to nothing, and then the pitch came from the mel alone (docs/small-model.md).
_FUNDAMENTAL, _OVERTONES = 1.0, 0.0
_HELD_OUT_EVERY = 200  # steps
_HELD_OUT_CROPS = 32


@dataclass(frozen=True, eq=False)
class Crops:
    """Audio to draw stretches of `length` frames from.

    Attributes:
        audio: int16 [480 * frames].
        mels: [frames, bins].
        pitch: float32 [frames] in Hz, 0 where unvoiced.
        starts: int64 [n], the frames where a stretch may begin.
    """

    audio: torch.Tensor
    mels: torch.Tensor
    pitch: torch.Tensor
    starts: torch.Tensor
    length: int

    def at(self, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(mel [rows, bins, frames], pitch [rows, frames], wave [rows, samples]) of stretches, float32."""
        frames = starts[:, None] + torch.arange(self.length, device=starts.device)
        samples = starts[:, None] * HOP_24K + torch.arange(self.length * HOP_24K, device=starts.device)
        mel = self.mels[frames].float().transpose(1, 2).contiguous()
        return mel, self.pitch[frames], self.audio[samples].float() / 32_768

    def draw(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`at` random places."""
        return self.at(self.starts[torch.randint(len(self.starts), (rows,), device=self.starts.device)])


def starts_of(counts: np.ndarray, utterances: list[int], length: int) -> torch.Tensor:
    """Where stretches of `length` frames may begin within `utterances`.

    Args:
        counts: tokens of all utterances.
    """
    frames = UPSAMPLING * counts
    ends = np.cumsum(frames)
    every = [np.arange(ends[i] - frames[i], ends[i] - length + 1) for i in utterances if frames[i] >= length]
    if not every:
        raise ValueError(f"no utterance has {length} frames; use shorter crops")
    return torch.from_numpy(np.concatenate(every))


def initialise(hift: HiFT) -> None:
    """Begin quietly, with small residuals, a source that is heard, and a pitch of some Hz."""
    with torch.no_grad():
        harmonics = hift.m_source.l_linear
        harmonics.weight.fill_(_OVERTONES)[:, 0] = _FUNDAMENTAL
        harmonics.bias.zero_()
        for block in hift.modules():
            if isinstance(block, ResBlock):
                for conv in block.convs2:
                    conv.weight.mul_(_FIRST_RESIDUAL)
        bins = hift.config.fft_size // 2 + 1
        hift.conv_post.weight.mul_(0.5)
        hift.conv_post.bias[:bins] = _QUIET
        classifier = hift.f0_predictor.classifier
        nn.init.normal_(classifier.weight, std=20 / math.sqrt(classifier.in_features))
        nn.init.constant_(classifier.bias, 60.0)


def generate(hift: HiFT, mel: torch.Tensor, pitch: torch.Tensor) -> torch.Tensor:
    """Waves [rows, samples] of `mel` [rows, bins, frames] excited at `pitch` [rows, frames], with random noise."""
    rows, _, frames = mel.shape
    harmonics = hift.config.harmonics + 1
    phase = (2 * torch.rand(rows, harmonics, device=mel.device) - 1) * math.pi
    phase[:, 0] = 0
    noise = torch.randn(rows, harmonics, frames * hift.config.samples_per_frame, device=mel.device)
    return hift.decode(mel, [frames] * rows, hift.m_source(pitch, phase, noise))


class VocoderTraining:
    """The nets, their optimizers and the two kinds of step."""

    def __init__(self, config: HiFTConfig, crops: Crops, rows: int, rate: float, device: torch.device):
        self.crops, self.rows, self.device = crops, rows, device
        self.hift = HiFT(config)
        initialise(self.hift)
        self.hift.to(device).m_source.requires_grad_(False)
        self.learning = [p for p in self.hift.parameters() if p.requires_grad]
        self.judge = Discriminators().to(device)
        self.distance = SpectralDistance().to(device)
        classifier = set(self.hift.f0_predictor.classifier.parameters())
        others = [p for p in self.learning if p not in classifier]
        self.optimizer = self._adamw([{"params": others}, {"params": [*classifier], "scale": _PITCH_SCALE}], rate)
        self.judge_optimizer = self._adamw([{"params": [*self.judge.parameters()]}], rate)

    def _adamw(self, groups: list[dict], rate: float) -> torch.optim.AdamW:
        if self.device.type == "cpu":
            return torch.optim.AdamW(groups, lr=rate, betas=_BETAS)
        groups = [{**group, "lr": torch.tensor(rate, device=self.device)} for group in groups]
        return torch.optim.AdamW(
            groups, lr=torch.tensor(rate, device=self.device), betas=_BETAS, fused=True, capturable=True
        )

    def warm_step(self) -> Noted:
        """By distances alone."""
        mel, pitch, wave = self.crops.draw(self.rows)
        made = generate(self.hift, mel, pitch)
        return self._improve(made, wave, self._pitch_loss(mel, pitch))

    def adversarial_step(self) -> Noted:
        """The discriminators first, then the vocoder by them and by distances."""
        mel, pitch, wave = self.crops.draw(self.rows)
        with torch.no_grad():
            predicted = self.hift.f0_predictor(mel)
        chosen = torch.rand(self.rows, 1, device=self.device) < _PREDICTED
        made = generate(self.hift, mel, torch.where(chosen, predicted, pitch))

        self.judge_optimizer.zero_grad(set_to_none=True)
        with autocast(self.device):
            judged = discriminator_loss(self.judge, made, wave)
        judged.backward()
        nn.utils.clip_grad_norm_(self.judge.parameters(), _CLIP)
        self.judge_optimizer.step()

        with autocast(self.device):
            adversarial, matching = generator_losses(self.judge, made, wave)
        more = self._pitch_loss(mel, pitch) + _ADVERSARIAL * adversarial + _MATCHING * matching
        noted = self._improve(made, wave, more)
        return {**noted, "judge": judged.detach(), "adversarial": adversarial.detach(), "matching": matching.detach()}

    def _pitch_loss(self, mel: torch.Tensor, pitch: torch.Tensor) -> torch.Tensor:
        return _PITCH * F.l1_loss(self.hift.f0_predictor(mel), pitch) / _HZ

    def _improve(self, made: torch.Tensor, wave: torch.Tensor, more: torch.Tensor) -> Noted:
        mels, spectra = self.distance(made, wave)
        self.optimizer.zero_grad(set_to_none=True)
        (_MELS * mels + _SPECTRA * spectra + more).backward(inputs=self.learning)
        norm = nn.utils.clip_grad_norm_(self.learning, _CLIP)
        self.optimizer.step()
        return {"mels": mels.detach(), "spectra": spectra.detach(), "norm": norm}

    @torch.no_grad()
    def held_out(self, average: Average, starts: torch.Tensor) -> Noted:
        """Of the averaged vocoder with its own pitch: the mels' distance, errors of voicing, and of pitch in Hz.

        Without the pitch the distance has to be larger. Where it is not, the vocoder does not listen to its source.
        """
        mel, pitch, wave = self.crops.at(starts)
        with average.applied():
            predicted = self.hift.f0_predictor(mel)
            mels, _ = self.distance(generate(self.hift, mel, predicted), wave)
            unexcited, _ = self.distance(generate(self.hift, mel, torch.zeros_like(pitch)), wave)
        threshold = self.hift.config.voiced_threshold
        both = (pitch > threshold) & (predicted > threshold)
        off = ((predicted - pitch).abs() * both).sum() / both.sum().clamp(min=1)
        wrong = ((pitch > threshold) != (predicted > threshold)).float().mean()
        return {"held_out_mels": mels, "held_out_unexcited": unexcited, "held_out_hz": off, "held_out_voicing": wrong}


def train(arguments: argparse.Namespace, config: S3GenConfig = SMALL.s3gen) -> HiFT:
    device = prepare(arguments)
    torch.backends.cudnn.benchmark = True  # all steps have one shape
    corpus = Corpus(arguments.corpus)
    features = Features.of(corpus, device, config.hift.num_mels)
    pitch = pitch_of(features.audio, UPSAMPLING * features.counts)
    if arguments.flow is not None:
        from training.flow_mels import replace_by_flow

        replace_by_flow(features, corpus, arguments.tokens, arguments.flow, config, arguments.seed)
    starts = starts_of(features.counts, corpus.training, arguments.crop).to(device)
    crops = Crops(features.audio, features.mels, pitch, starts, arguments.crop)
    training = VocoderTraining(config.hift, crops, arguments.rows, arguments.rate, device)
    warm_start(arguments, training.hift)
    average = Average(training.hift, arguments.decay)
    unheard = np.setdiff1d(np.arange(len(features.counts)), corpus.training).tolist() or corpus.training
    unheard_starts = starts_of(features.counts, unheard, arguments.crop).to(device)
    unheard_starts = unheard_starts[torch.linspace(0, len(unheard_starts) - 1, _HELD_OUT_CROPS).long().to(device)]
    print(f"{len(starts)} places for crops, {float((pitch > 0).float().mean()):.0%} of all frames voiced", flush=True)

    warm = RepeatedStep(training.warm_step, device, not arguments.eager)
    adversarial = RepeatedStep(training.adversarial_step, device, not arguments.eager)
    run = Run(
        arguments,
        hift=training.hift,
        optimizer=training.optimizer,
        judge=training.judge,
        judge_optimizer=training.judge_optimizer,
        average=average,
    )
    for step in run.steps():
        rate = rate_at(run.progress, arguments.rate)
        set_rate(training.optimizer, rate)
        set_rate(training.judge_optimizer, rate * arguments.judge_rate)
        run.note(**(warm() if run.progress < arguments.warm_up else adversarial()))
        average.update()
        if step % _HELD_OUT_EVERY == 0:
            run.note(**training.held_out(average, unheard_starts))
    keep_weights(arguments.out, average.module_state(), asdict(config.hift))
    return training.hift


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(arguments, seconds=360)
    arguments.add_argument("--corpus", type=Path, required=True)
    arguments.add_argument("--flow", type=Path, help="directory of a trained flow that makes the mels")
    arguments.add_argument("--tokens", type=Path, help="directory of the corpus's speech tokens, for --flow")
    arguments.add_argument("--rows", type=int, default=48, help="crops of a batch")
    arguments.add_argument("--crop", type=int, default=24, help="mel frames of a crop")
    arguments.add_argument("--rate", type=float, default=5e-4, help="highest learning rate")
    arguments.add_argument("--judge-rate", type=float, default=0.6, help="the discriminators' rate, as a share of it")
    arguments.add_argument("--warm-up", type=float, default=0.2, help="share of the training without discriminators")
    arguments.add_argument("--decay", type=float, default=0.999, help="of the average")
    arguments.add_argument("--eager", action="store_true", help="no CUDA graphs")
    return arguments


if __name__ == "__main__":
    train(parser().parse_args())
