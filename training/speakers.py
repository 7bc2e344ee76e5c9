"""Trains both speaker nets: python -m training.speakers --corpus DIR --out DIR [--seconds 120] [--resume]

The voice encoder (for T3) and the x-vector net (for the flow) learn to tell the speakers of the training apart, with a
margin (additive-margin softmax; Wang et al., 2018), from short stretches of their utterances. The held-out speakers
say whether that holds for voices never heard: two utterances of one against two of different ones.

At the end the averaged weights are in OUT/weights, and the vectors of all utterances in the directory of --codes.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.audio.features import kaldi_fbank, trim_silence, voice_encoder_mel
from chatterbox_vllm.checkpoint.config import ModelConfig, VoiceEncoderConfig, XVectorConfig
from chatterbox_vllm.voices.nets.voice_encoder import PARTIAL_FRAMES, VoiceEncoder, split_partials
from chatterbox_vllm.voices.nets.xvector import CAMPPlus, _Norm
from training.codes import CODES, save_vectors
from training.data import Corpus
from training.features import Flat, corpus_features
from training.loop import Average, Run, adamw, add_arguments, exact_float32, prepare, rate_at, set_rate
from training.small import SMALL
from training.weights import keep_weights, load_weights, warm_start

_SCALE = 30.0
_MARGIN = 0.2
_MARGIN_RISES = 0.25  # share of the training over which the margin grows to its full width
_XVECTOR_FRAMES = (200, 300, 400)
_PARTIAL_BATCH = 1024
# The published file has the scale and offset of its training's loss; nothing reads them.
_PUBLISHED_SIMILARITY = {"similarity_weight": 10.0, "similarity_bias": -5.0}


class TrainedNorm(_Norm):
    """Normalises by the batch's own statistics while training, and keeps their running mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=self.training)


def trainable_xvector(config: XVectorConfig) -> CAMPPlus:
    """The net with fresh weights, whose norms learn; in `eval` mode it computes what `CAMPPlus` does."""
    net = CAMPPlus(config)
    for module in net.modules():
        if isinstance(module, _Norm):
            module.__class__ = TrainedNorm
            nn.init.zeros_(module.running_mean)
            nn.init.ones_(module.running_var)
            if module.weight is not None:
                nn.init.ones_(module.weight.requires_grad_())
                nn.init.zeros_(module.bias.requires_grad_())
    return net


def trainable_voice_encoder(config: VoiceEncoderConfig, mels: torch.Tensor) -> VoiceEncoder:
    """The net with fresh weights, for mels like these [frames, num_mels].

    It hears power, which differs by orders of magnitude from bin to bin: the first layer divides each bin by its
    deviation. What it says is its state after the last of 160 frames, so its gates start with memories of up to that
    many frames (Tallec and Ollivier, 2018); with the usual ones they would know the last three.
    """
    net = VoiceEncoder(config)
    size = config.hidden_size
    with torch.no_grad():
        for layer in range(config.num_layers):
            memory = torch.empty(size).uniform_(1, PARTIAL_FRAMES - 1).log()
            bias = getattr(net.lstm, f"bias_ih_l{layer}")
            bias[:size], bias[size : 2 * size] = -memory, memory
        net.lstm.weight_ih_l0.mul_(1 / mels.float().std(0).clamp(min=1e-6).cpu())
        for name, value in _PUBLISHED_SIMILARITY.items():
            getattr(net, name).fill_(value)
    return net


class Margin(nn.Module):
    """Additive-margin softmax over the speakers, by the cosine to a learnt centre of each."""

    def __init__(self, size: int, speakers: int):
        super().__init__()
        self.centres = nn.Parameter(0.1 * torch.randn(speakers, size))

    def forward(
        self, vectors: torch.Tensor, speakers: torch.Tensor, margin: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of vectors [B, size] and the share whose nearest centre is their speaker's."""
        cosines = F.normalize(vectors.float()) @ F.normalize(self.centres).T
        right = (cosines.argmax(1) == speakers).float().mean()
        away = margin * F.one_hot(speakers, cosines.shape[1])
        return F.cross_entropy(_SCALE * (cosines - away), speakers), right


class Trained(nn.Module):
    """Both nets, and the speakers' centres of each."""

    def __init__(self, config: ModelConfig, speakers: int, mels: torch.Tensor):
        super().__init__()
        self.voice_encoder = trainable_voice_encoder(config.voice_encoder, mels)
        self.xvector = trainable_xvector(config.s3gen.xvector)
        self.voice_margin = Margin(config.voice_encoder.embedding_size, speakers)
        self.xvector_margin = Margin(config.s3gen.xvector.embedding_size, speakers)


class Material:
    """A corpus as the nets hear it, float16 on the device: power mels without silent ends, and filterbanks."""

    def __init__(self, corpus: Corpus, config: ModelConfig, device: torch.device):
        def mel(_: torch.Tensor, wave: torch.Tensor) -> torch.Tensor:
            start, end = trim_silence(wave)
            return voice_encoder_mel(wave[start:end], config.voice_encoder.num_mels).half()

        self.mels, self.fbanks = corpus_features(
            corpus, device, mel, lambda _, wave: kaldi_fbank(wave, config.s3gen.xvector.num_mels).half()
        )
        self.speakers = [utterance.speaker for utterance in corpus.utterances]
        by_speaker: defaultdict[int, list[int]] = defaultdict(list)
        for index in corpus.training:
            by_speaker[self.speakers[index]].append(index)
        self.by_speaker = [np.array(indices) for _, indices in sorted(by_speaker.items())]

    def draw(self, count: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Utterances to train on and the numbers of their speakers among those of the training, [count] each.

        All speakers are drawn alike.
        """
        device = self.mels.values.device
        drawn = random.integers(len(self.by_speaker), size=count)
        rows = [self.by_speaker[s][random.integers(len(self.by_speaker[s]))] for s in drawn]
        return torch.tensor(rows, device=device), torch.from_numpy(drawn).to(device)


@torch.no_grad()
def disturbed_power(mel: torch.Tensor) -> torch.Tensor:
    """Power mels [B, frames, bins] at another level (±6 dB), with a slope (±4 dB at the ends) and with noise."""
    batch, _, bins = mel.shape
    decibels = torch.empty(batch, 1, 1, device=mel.device).uniform_(-6, 6)
    slope = torch.empty(batch, 1, 1, device=mel.device).uniform_(-4, 4)
    mel = mel * 10 ** ((decibels + slope * torch.linspace(-1, 1, bins, device=mel.device)) / 10)
    below = torch.empty(batch, 1, 1, device=mel.device).uniform_(1.5, 6)  # decades under the clip's mean
    shape = 10 ** (0.5 * torch.randn(batch, 1, bins, device=mel.device))
    noise = mel.mean((1, 2), keepdim=True) * 10**-below * shape
    return mel + noise * torch.empty_like(mel).exponential_()


@torch.no_grad()
def disturbed_fbank(features: torch.Tensor) -> torch.Tensor:
    """Filterbanks [B, frames, bins] with noise, each bin less its mean again."""
    batch, _, bins = features.shape
    level = torch.empty(batch, 1, 1, device=features.device).uniform_(-8, -1)
    noise = level + torch.randn(batch, 1, bins, device=features.device) + 0.5 * torch.randn_like(features)
    features = torch.logaddexp(features, noise)
    return features - features.mean(1, keepdim=True)


@torch.no_grad()
@exact_float32()
def voice_embeddings(net: VoiceEncoder, mels: Flat) -> np.ndarray:
    """As `VoiceEncoder.embed`, of all mels without silent ends, float32 [N, size]."""
    partials = [split_partials(mels.row(i).float()) for i in range(len(mels.lengths))]
    embedded = torch.cat([net(batch) for batch in torch.cat(partials).split(_PARTIAL_BATCH)])
    means = [part.mean(0) for part in embedded.split([len(p) for p in partials])]
    return F.normalize(torch.stack(means)).cpu().numpy()


@torch.no_grad()
@exact_float32()
def xvectors(net: CAMPPlus, fbanks: Flat) -> np.ndarray:
    """As `CAMPPlus.embed`, of all filterbanks, float32 [N, size]. Those of one length go together."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(fbanks.lengths.tolist()):
        by_length[length].append(index)
    made: dict[int, np.ndarray] = {}
    for length, rows in by_length.items():
        for first in range(0, len(rows), 256):
            part = rows[first : first + 256]
            features = fbanks.padded(torch.tensor(part, device=fbanks.values.device), length).float()
            made.update(zip(part, net(features).cpu().numpy(), strict=True))
    return np.stack([made[i] for i in range(len(made))])


def equal_error_rate(vectors: np.ndarray, speakers: np.ndarray) -> float:
    """Of all pairs: the share of different speakers taken for one at the cosine that splits as many of the same."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(unit), 1)
    cosines, same = (unit @ unit.T)[first, second], (speakers[:, None] == speakers)[first, second]
    if same.all() or not same.any():
        return float("nan")
    order = np.argsort(cosines)
    missed = np.cumsum(same[order]) / same.sum()
    accepted = 1 - np.cumsum(~same[order]) / (~same).sum()
    at = np.argmin(np.abs(missed - accepted))
    return float(missed[at] + accepted[at]) / 2


def nearest_right(vectors: np.ndarray, speakers: np.ndarray) -> float:
    """The share of utterances whose nearest other utterance is of the same speaker."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    return float((speakers[cosines.argmax(1)] == speakers).mean())


def evaluate(model: Trained, material: Material, corpus: Corpus) -> dict[str, float]:
    """Equal error rates and nearest neighbours among held-out speakers (and of all, where fewer than two are)."""
    model.eval()
    strangers = [i for i, u in enumerate(corpus.utterances) if corpus.speakers[u.speaker].held_out]
    chosen = strangers if len({material.speakers[i] for i in strangers}) > 1 else list(range(len(material.speakers)))
    rows = torch.tensor(chosen[:600])
    speakers = np.array(material.speakers)[rows]
    measured = {}
    for name, vectors in (
        ("voice", voice_embeddings(model.voice_encoder, Flat.of([material.mels.row(i) for i in rows.tolist()]))),
        ("xvector", xvectors(model.xvector, Flat.of([material.fbanks.row(i) for i in rows.tolist()]))),
    ):
        measured[f"held_out_{name}_eer"] = equal_error_rate(vectors, speakers)
        measured[f"held_out_{name}_nearest"] = nearest_right(vectors, speakers)
    model.train()
    return measured


def train(arguments: argparse.Namespace, config: ModelConfig) -> Trained:
    device = prepare(arguments)
    corpus = Corpus(arguments.corpus)
    material = Material(corpus, config, device)
    random = np.random.default_rng(arguments.seed)
    model = Trained(config, len(material.by_speaker), material.mels.values).to(device)
    optimizer = adamw(model, arguments.rate, decay=0.05)
    warm_start(arguments, model)
    average = Average(model, 0.998)
    run = Run(arguments, model=model, optimizer=optimizer, average=average)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model.voice_encoder, model.xvector)]
    print(f"{sizes[0]:,} and {sizes[1]:,} parameters, {len(material.by_speaker)} speakers", flush=True)
    judged = run.spent
    for step in run.steps():
        set_rate(optimizer, rate_at(run.progress, arguments.rate))
        margin = _MARGIN * min(1.0, run.progress / _MARGIN_RISES)
        rows, speakers = material.draw(arguments.batch, random)
        partials = disturbed_power(material.mels.crops(rows, PARTIAL_FRAMES, repeat=False).float())
        voice, voice_right = model.voice_margin(model.voice_encoder(partials), speakers, margin)
        half = slice(arguments.batch // 2)
        frames = _XVECTOR_FRAMES[step % len(_XVECTOR_FRAMES)]
        features = disturbed_fbank(material.fbanks.crops(rows[half], frames, repeat=True).float())
        xvector, xvector_right = model.xvector_margin(model.xvector(features), speakers[half], margin)
        optimizer.zero_grad(set_to_none=True)
        (voice + xvector).backward()
        # One net's gradients must not shorten the other's.
        for net in (model.voice_encoder, model.xvector):
            nn.utils.clip_grad_norm_(net.parameters(), 3.0)
        optimizer.step()
        average.update()
        run.note(voice=voice, voice_right=voice_right, xvector=xvector, xvector_right=xvector_right)
        if run.spent - judged > arguments.judge_every:
            with average.applied():
                run.write_log(**evaluate(model, material, corpus))
            judged = run.spent
    with average.applied():
        run.write_log(**evaluate(model, material, corpus))
    keep_weights(arguments.out, average.module_state(), asdict(config))
    model.load_state_dict(load_weights(arguments.out))  # the vectors are those of the weights as they are kept
    model.eval()
    save_vectors(
        arguments.codes or arguments.out.parent / CODES,
        xvectors(model.xvector, material.fbanks),
        voice_embeddings(model.voice_encoder, material.mels),
    )
    return model


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    add_arguments(options, seconds=120)
    options.add_argument(
        "--codes", type=Path, help="directory for the corpus's vectors; by default `codes` beside --out"
    )
    options.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    options.add_argument("--batch", type=int, default=384, help="stretches for the voice encoder; half for the other")
    options.add_argument("--judge-every", type=float, default=60.0, help="seconds between two looks at held-out speech")
    return options


def main() -> None:
    train(parser().parse_args(), SMALL)


if __name__ == "__main__":
    main()
