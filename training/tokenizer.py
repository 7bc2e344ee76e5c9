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
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from chatterbox_vllm.audio.features import HOP_16K, RATE_16K
from chatterbox_vllm.checkpoint.config import SpeechTokenizerConfig
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from training.augment import disturbed
from training.codes import CODES, save_tokens
from training.data import Corpus
from training.features import Flat, batches, endless
from training.loop import (
    Average,
    Run,
    adamw,
    add_arguments,
    autocast,
    exact_float32,
    prepare,
    rate_at,
    set_rate,
)
from training.phonemes import edit_distance, greedy
from training.small import SMALL
from training.tokenizer_data import Material
from training.tokenizer_losses import losses, mel_loss, pitch_loss
from training.tokenizer_model import CTC_STEPS, MEL_BINS, MEL_FRAMES, Trained, code_ids, within
from training.weights import keep_weights, load_weights, warm_start

# Share of the training in which the codes find their meaning: all are kept in use meanwhile. After it they are left to
# what the heads need, and shall stay the same where the sound gets worse, which would hold them back before.
_SETTLED = 0.33


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
