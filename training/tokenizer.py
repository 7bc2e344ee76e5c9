"""Trains the speech tokenizer: python -m training.tokenizer --corpus DIR --out DIR [--seconds 240] [--resume]

Tokens shall carry the words and how they are spoken, and not who speaks. So the quantized values, and nothing else of
the clip, go to heads that are thrown away afterwards: one names the phonemes (CTC), another makes the mel of the flow
and the course of the pitch from them and from a vector of the speaker. As the speaker comes from outside, tokens gain
nothing by telling him. The input's formants are shifted now and then, and its sound is made worse; the mel to be made
stays, and so shall the tokens.

At the end the averaged weights are in OUT/weights. The directory of --codes has the tokens of all utterances.
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

from chatterbox_vllm.audio.features import HOP_16K, RATE_16K, mel_filterbank, speech_tokenizer_mel
from chatterbox_vllm.checkpoint.config import SpeechTokenizerConfig
from chatterbox_vllm.voices.nets.speech_tokenizer import FRAMES_PER_TOKEN, SpeechTokenizer
from training.augment import disturbed
from training.codes import CODES, save_tokens
from training.data import Corpus, CorpusError
from training.features import Flat, batches, corpus_features, endless
from training.frames import Features
from training.loop import (
    Average,
    Run,
    adamw,
    add_arguments,
    autocast,
    exact_float32,
    load_checkpoint,
    prepare,
    rate_at,
    set_rate,
)
from training.phonemes import PhonemeIds, ctc_loss, edit_distance, greedy
from training.pitch import pitch_of
from training.small import SMALL
from training.weights import WEIGHTS, keep_weights, load_weights, warm_start

MEL_BINS = 80  # of the flow's mel, two frames a token
MEL_FRAMES = 2
_PITCH = 2  # numbers for it beside the bins: how high it is, and whether there is any
CTC_STEPS = 2  # a token: 25 steps a second are too few for quick speech, where two alike need a blank between them
# Rounding keeps all three levels in use where tanh sees a deviation of this: a third of a normal distribution lies
# within atanh(0.5) = 0.549 of zero.
DEVIATION = 1.275
# Share of the training in which the codes find their meaning: all are kept in use meanwhile. After it they are left to
# what the heads need, and shall stay the same where the sound gets worse, which would hold them back before.
_SETTLED = 0.33


class Heads(nn.Module):
    """What the quantized values are taught by.

    Args:
        codes: values of a token.
        phonemes: the blank included.
        speakers: of the corpus.
    """

    def __init__(self, codes: int, phonemes: int, speakers: int, width: int = 256):
        super().__init__()
        self.phonemes = nn.ModuleList([nn.Linear(codes, width), *(_Context(width, 3) for _ in range(2))])
        self.phoneme_logits = nn.Linear(width, CTC_STEPS * phonemes)
        self.speaker = nn.Embedding(speakers, width)
        self.sound = nn.ModuleList([nn.Linear(codes, width), *(_Context(width, 5) for _ in range(3))])
        self.mel = nn.Linear(width, MEL_FRAMES * (MEL_BINS + _PITCH))

    def forward(self, codes: torch.Tensor, inside: torch.Tensor, speaker: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """codes [B, T, codes], inside [B, T] -> logits [B, CTC_STEPS * T, phonemes], and by mel frame of the flow
        [B, 2 T, MEL_BINS + 2]: its bins, the pitch in octaves from the speaker's mean, the logit of there being any.
        """
        x = self.phonemes[0](codes)
        for context in self.phonemes[1:]:
            x = context(x, inside)
        logits = self.phoneme_logits(x).unflatten(2, (CTC_STEPS, -1)).flatten(1, 2)
        y = self.sound[0](codes) + self.speaker(speaker)[:, None]
        for context in self.sound[1:]:
            y = context(y, inside)
        return logits, self.mel(y).unflatten(2, (MEL_FRAMES, -1)).flatten(1, 2)


class _Context(nn.Module):
    """A residual convolution over neighbouring tokens: a short one, so that tokens say what happens where they are."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        seen = self.norm(x) * inside[..., None]
        return x + self.out(F.gelu(self.mix(seen.transpose(1, 2)).transpose(1, 2)))


class Trained(nn.Module):
    """The tokenizer with its heads."""

    def __init__(self, config: SpeechTokenizerConfig, phonemes: int, speakers: int):
        super().__init__()
        self.phonemes = phonemes
        self.tokenizer = SpeechTokenizer(config)
        self.tokenizer._mel_filters.copy_(mel_filterbank(RATE_16K, 400, config.num_mels, RATE_16K / 2))
        self.heads = Heads(config.code_size, phonemes, speakers)

    def quantized(self, mel: torch.Tensor, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the rounding gets before tanh, its result, both [B, T, codes], and token counts [B].

        The gradient passes the rounding as if it were not there (straight-through).

        Args:
            mel: [B, bins, frames].
            frames: how many of them each has, [B].
        """
        hidden, counts = self.tokenizer.encoder(mel, frames)
        quantizer = self.tokenizer.quantizer
        with torch.autocast(mel.device.type, enabled=False):
            hidden = hidden.float()
            levels = quantizer.levels(hidden)
            raw = quantizer._codebook.project_down(hidden)
        return raw, levels + (levels.round() - levels).detach(), counts

    @torch.no_grad()
    def spread_levels(self, mel: torch.Tensor, frames: torch.Tensor) -> None:
        """Make the layer before the rounding give independent values that use all three levels from the first step on.

        Its rows become the principal components of the hidden states, each scaled to the deviation wanted.
        """
        hidden, counts = self.tokenizer.encoder(mel, frames)
        states = hidden.float()[within(counts, hidden.shape[1])]
        layer = self.tokenizer.quantizer._codebook.project_down
        centred = states - states.mean(0)
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(states))
        kept = slice(-layer.out_features, None)
        scale = DEVIATION / variances[kept].clamp(min=1e-8).sqrt()
        layer.weight.copy_(directions[:, kept].T * scale[:, None])
        layer.bias.copy_(-layer.weight @ states.mean(0))


def load_trained(out: Path) -> Trained:
    """The tokenizer and its heads from the weights that a training left in `out`.

    Raises:
        CorpusError: the weights are those of a model, which has no heads.
    """
    state = load_weights(out)
    if "heads.phoneme_logits.bias" not in state:
        raise CorpusError(f"{out} came from a model and has no phoneme heads; train it on, or give T3 --spoken 0")
    config = SpeechTokenizerConfig(**load_checkpoint(out / WEIGHTS)["config"])
    phonemes = len(state["heads.phoneme_logits.bias"]) // CTC_STEPS
    model = Trained(config, phonemes, len(state["heads.speaker.weight"]))
    model.load_state_dict(state)
    return model.eval()


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


def within(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """True where rows of these lengths hold something, bool [B, longest]."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


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


@torch.no_grad()
def evaluate(model: Trained, material: Material, indices: list[int], budget: int) -> dict[str, float]:
    """Phoneme error rate by the CTC head, mel loss and the perplexity of the codebook, over these utterances."""
    model.eval()
    wrong = spoken = 0
    mels, pitches, used = [], [], []
    for group in batches(material.heard.lengths[indices], budget, np.random.default_rng(0), spread=0.0):
        batch = material.batch(np.array(indices)[group])
        _, codes, counts = model.quantized(batch.heard, batch.frames)
        inside = within(counts, codes.shape[1])
        logits, made = model.heads(codes, inside, batch.speakers)
        frames = inside.repeat_interleave(MEL_FRAMES, 1)
        mels.append(float(mel_loss(made[..., :MEL_BINS], batch.spoken, frames)))
        pitches.append(float(pitch_loss(made[..., MEL_BINS:], batch.octaves, frames)))
        used.append(code_ids(codes[inside]))
        said = batch.phonemes.tolist()
        for found, ids, count in zip(greedy(logits, CTC_STEPS * batch.counts), said, batch.phoneme_counts, strict=True):
            wrong += edit_distance(found, ids[:count])
            spoken += int(count)
    model.train()
    share = torch.cat(used).bincount().double()
    share = share[share > 0] / share.sum()
    return {
        "phoneme_errors": wrong / max(spoken, 1),
        "mel": float(np.mean(mels)),
        "pitch": float(np.mean(pitches)),
        "perplexity": math.exp(float(-(share * share.log()).sum())),
        "codes_used": float(len(share)),
    }


def codes_of(tokens: torch.Tensor, codes: int = 8) -> torch.Tensor:
    """Rounded values, float32 [..., codes], of ids [...]; the reverse of `code_ids`."""
    return (tokens[..., None] // 3 ** torch.arange(codes, device=tokens.device) % 3 - 1).float()


def code_ids(codes: torch.Tensor) -> torch.Tensor:
    """Ids of rounded values [..., codes]: digits to base 3, lowest first, as the quantizer counts them."""
    digits = codes.round().long() + 1
    return (digits * 3 ** torch.arange(codes.shape[-1], device=codes.device)).sum(-1)


@torch.no_grad()
@exact_float32()
def corpus_tokens(tokenizer: SpeechTokenizer, heard: Flat) -> list[np.ndarray]:
    """The tokens of all mels, int16 [n] each, as enrolment computes them: in float32."""
    tokens: dict[int, np.ndarray] = {}
    for group in batches(heard.lengths, 40_000, np.random.default_rng(0), spread=0.0):
        frames = heard.lengths[group]
        mels = heard.padded(torch.from_numpy(group).to(heard.values.device), int(frames.max())).float()
        hidden, counts = tokenizer.encoder(mels.transpose(1, 2), frames.to(mels.device))
        ids = tokenizer.quantizer(hidden).short().cpu().numpy()
        tokens.update((i, row[:n]) for i, row, n in zip(group.tolist(), ids, counts.tolist(), strict=True))
    return [tokens[i] for i in range(len(tokens))]


def train(arguments: argparse.Namespace, config: SpeechTokenizerConfig) -> Trained:
    device = prepare(arguments)
    corpus = Corpus(arguments.corpus)
    material = Material(corpus, config, device)
    model = Trained(config, len(material.ids), len(corpus.speakers)).to(device)
    optimizer = adamw(model, arguments.rate, decay=0.05)
    random = np.random.default_rng(arguments.seed)
    budget = int(arguments.batch_seconds * RATE_16K / HOP_16K)
    training = np.array(corpus.training)
    held_out = held_out_sentences(corpus)[: arguments.judged]
    plan = endless(lambda: [training[b] for b in batches(material.heard.lengths[training], budget, random)])

    first = material.batch(next(plan))
    model.spread_levels(first.heard, first.frames)
    warm_start(arguments, model)
    average = Average(model, 0.998)
    run = Run(arguments, model=model, optimizer=optimizer, average=average)
    print(
        f"{sum(p.numel() for p in model.tokenizer.parameters()):,} parameters, {len(training)} utterances", flush=True
    )
    judged = run.spent
    for _ in run.steps():
        set_rate(optimizer, rate_at(run.progress, arguments.rate))
        batch = material.batch(next(plan))
        with autocast(device):
            parts = losses(model, batch, disturbed(batch.heard))
        settled = min(1.0, run.progress / _SETTLED)
        weights = {
            "ctc": 1.0,
            "mel": arguments.mel_weight,
            "pitch": arguments.pitch_weight,
            "levels": arguments.levels_weight * max(0.1, 1 - settled),
            "same": arguments.same_weight * settled,
        }
        loss = torch.stack([weight * parts[name] for name, weight in weights.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if run.progress < arguments.heads_first:
            model.tokenizer.zero_grad(set_to_none=True)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
        run.note(**parts, norm=norm)
        if run.spent - judged > arguments.judge_every:
            with average.applied():
                say(run, evaluate(model, material, held_out, budget))
            judged = run.spent
    with average.applied():
        say(run, evaluate(model, material, held_out, budget))
    keep_weights(arguments.out, average.module_state(), asdict(config))
    model.load_state_dict(load_weights(arguments.out))  # the tokens are those of the weights as they are kept
    tokens = corpus_tokens(model.tokenizer, material.heard)
    save_tokens(arguments.codes or arguments.out.parent / CODES, tokens)
    return model


def held_out_sentences(corpus: Corpus) -> list[int]:
    """Held-out utterances of speakers that are trained on; of the training where the corpus has none."""
    own = [i for i, u in enumerate(corpus.utterances) if u.held_out and not corpus.speakers[u.speaker].held_out]
    return own or [i for i, u in enumerate(corpus.utterances) if u.held_out] or corpus.training


def say(run: Run, measured: dict[str, float]) -> None:
    run.write_log(**{f"held_out_{name}": value for name, value in measured.items()})


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    add_arguments(options, seconds=240)
    options.add_argument(
        "--codes", type=Path, help="directory for the corpus's tokens; by default `codes` beside --out"
    )
    options.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    options.add_argument("--batch-seconds", type=float, default=400.0, help="of audio, padding included")
    options.add_argument("--mel-weight", type=float, default=2.0)
    options.add_argument("--pitch-weight", type=float, default=1.0)
    options.add_argument("--levels-weight", type=float, default=0.3, help="a tenth of it after the first third")
    options.add_argument(
        "--same-weight", type=float, default=0.3, help="of tokens being those of the clean clip, after the first third"
    )
    options.add_argument(
        "--heads-first",
        type=float,
        default=0.0,
        help="share of the training in which the heads alone learn: fresh heads would lead a tokenizer that came from "
        "a model away from what its tokens mean",
    )
    options.add_argument("--judge-every", type=float, default=60.0, help="seconds between two looks at held-out speech")
    options.add_argument("--judged", type=int, default=300, help="held-out utterances that are looked at")
    return options


def main() -> None:
    train(parser().parse_args(), SMALL.s3gen.tokenizer)


if __name__ == "__main__":
    main()
