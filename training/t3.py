"""Trains T3: python -m training.t3 --corpus DIR --out DIR [--seconds 300] [--resume]

It needs the corpus's codes (training.tokenizer and training.speakers write them), the text tokenizer (training.text)
and the tokenizer's heads, which say how well T3's own speech can be understood.

Speech follows text at a pace that the learned positions and two guided heads know from the start. Text, speaker and
prompt are taken away now and then, so that guidance has something to compare with; some tokens of the history are
wrong, so that T3 looks at the text again where it has said something odd. The averaged weights are in OUT/weights.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.text.tokenizer import BpeTokenizer
from training.codes import CODES, Codes
from training.data import Corpus, CorpusError
from training.features import batches
from training.loop import Average, Run, adamw, add_arguments, autocast, load_checkpoint, prepare, rate_at, set_rate
from training.phonemes import PhonemeIds
from training.small import SMALL
from training.t3_data import Epoch, Sentences, exaggeration
from training.t3_judge import length_ratio, phoneme_errors, speak
from training.t3_model import IGNORED, TrainedT3
from training.text import FILE, SPECIAL, character_features, spoken_form
from training.tokenizer import held_out_sentences
from training.tokenizer_model import Trained, load_trained
from training.weights import WEIGHTS, keep_weights, load_weights, warm_start

_GUIDED = 0.4  # share of the training in which the guided heads' loss falls to zero
_SPREAD = 0.1


class Material:
    """A corpus as T3 is trained on it: the sentences of the training, and those that it is judged by."""

    def __init__(self, arguments: argparse.Namespace, config: T3Config, device: torch.device):
        beside = arguments.out.parent
        self.corpus = Corpus(arguments.corpus)
        path = arguments.text or beside / "text" / FILE
        encode = BpeTokenizer(path).encode
        self.features = character_features(Tokenizer.from_file(str(path)), config.text_vocab_size)
        directory = arguments.codes or beside / CODES
        codes = Codes.read(directory)
        texts = [encode(spoken_form(utterance.text)) for utterance in self.corpus.utterances]
        self.phonemes = PhonemeIds(self.corpus.phoneme_symbols)
        self.tokenizer: Trained | None = None
        if arguments.spoken:
            self.tokenizer = load_trained(arguments.tokenizer or beside / "tokenizer").to(device)
            if self.tokenizer.phonemes != len(self.phonemes):
                raise CorpusError(
                    f"the tokenizer was taught {self.tokenizer.phonemes} phonemes and {arguments.corpus} has "
                    f"{len(self.phonemes)}; train the tokenizer on this corpus"
                )

        def sentences(indices: list[int]) -> Sentences:
            return Sentences(
                config,
                [codes.of(i) for i in indices],
                [texts[i] for i in indices],
                [self.corpus.utterances[i].speaker for i in indices],
                codes.embeddings[indices],
                [exaggeration(self.corpus.utterances[i].movement) for i in indices],
                SPECIAL["[SPACE]"],
                device,
            )

        self.training = sentences(self.corpus.training)
        # Prompts of judged sentences come from everything else of their speakers.
        self.everything = sentences(list(range(len(self.corpus.utterances))))
        self.judged = set(held_out_sentences(self.corpus)[: arguments.judged])


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and the share of right tokens."""
    flat, said = logits.flatten(0, 1).float(), targets.flatten()
    counted = said != IGNORED
    right = ((flat.argmax(1) == said) & counted).sum() / counted.sum().clamp(min=1)
    return F.cross_entropy(flat, said, ignore_index=IGNORED), right


@torch.no_grad()
def evaluate(model: TrainedT3, material: Material, device: torch.device, spoken: int) -> dict[str, float]:
    """Over held-out sentences: perplexity and accuracy with the history given, phoneme errors of T3's own speech.

    Args:
        spoken: how many sentences T3 says itself.
    """
    model.eval()
    random = np.random.default_rng(0)
    epoch = material.everything.epoch(random, material.judged)
    total = right = count = 0.0
    for group in batches(epoch.lengths, 20_000, random, spread=0.0):
        batch = material.everything.batch(epoch, group, random, disturb=False)
        with autocast(device):
            logits, _ = model(batch)
        loss, share = loss_of(logits, batch.targets)
        weight = int((batch.targets != IGNORED).sum())
        total, right, count = total + float(loss) * weight, right + float(share) * weight, count + weight
    measured = {"perplexity": math.exp(total / max(count, 1)), "accuracy": right / max(count, 1)}
    if material.tokenizer is not None:
        measured |= _heard(model, material, material.tokenizer, epoch, device, spoken)
    model.train()
    return {f"held_out_{name}": value for name, value in measured.items()}


def _heard(
    model: TrainedT3, material: Material, tokenizer: Trained, epoch: Epoch, device: torch.device, spoken: int
) -> dict[str, float]:
    chosen = np.arange(min(spoken, len(epoch.sequences)))
    batch = material.everything.batch(epoch, chosen, np.random.default_rng(0), disturb=False)
    with autocast(device):
        said, freely = speak(model, batch), speak(model, batch, penalty=1.0)
    numbers = epoch.utterances.cpu().numpy()[epoch.sequences[chosen, 6]]
    phonemes = [material.corpus.utterances[i].phonemes for i in numbers]
    real = [row[:n].tolist() for row, n in zip(batch.speech, batch.speech_counts.tolist(), strict=True)]
    return {
        "phoneme_errors": phoneme_errors(tokenizer, said, phonemes, material.phonemes),
        "phoneme_errors_unpenalized": phoneme_errors(tokenizer, freely, phonemes, material.phonemes),
        "phoneme_errors_of_real": phoneme_errors(tokenizer, real, phonemes, material.phonemes),
        "length_ratio": length_ratio(said, epoch.sequences[chosen, 1]),
    }


def published_t3(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the published T3 file from the weights that a training left in `out`; float32."""
    return load_t3(out).published()


def load_t3(out: Path) -> TrainedT3:
    """The model from the weights that a training left in `out`."""
    state = load_weights(out)
    model = TrainedT3(T3Config(**load_checkpoint(out / WEIGHTS)["config"]), state["text_table.features"])
    model.load_state_dict(state)
    return model.eval()


def train(arguments: argparse.Namespace, config: T3Config) -> TrainedT3:
    device = prepare(arguments)
    material = Material(arguments, config, device)
    random = np.random.default_rng(arguments.seed)
    sentences = material.training
    model = TrainedT3(config, material.features, sentences.tokens_per_piece, arguments.dropout).to(device)
    optimizer = adamw(model, arguments.rate, betas=(0.9, 0.95), decay=arguments.decay)
    warm_start(arguments, model)
    average = Average(model, 0.999)
    run = Run(arguments, model=model, optimizer=optimizer, average=average)
    print(
        f"{sum(t.numel() for t in model.published().values()):,} numbers as published, {len(sentences.speakers)} "
        f"sentences, {sentences.tokens_per_piece:.2f} speech tokens for a text token",
        flush=True,
    )
    judged, plan, epoch = run.spent, [], None
    for _ in run.steps():
        set_rate(optimizer, rate_at(run.progress, arguments.rate))
        if not plan:
            epoch = sentences.epoch(random)
            plan = batches(epoch.lengths, arguments.batch_rows, random, _SPREAD)
        batch = sentences.batch(epoch, plan.pop(), random)
        guidance = arguments.guided * max(0.0, 1 - run.progress / _GUIDED)
        with autocast(device):
            logits, off = model(batch, guided=guidance > 0)
        loss, right = loss_of(logits, batch.targets)
        optimizer.zero_grad(set_to_none=True)
        (loss if off is None else loss + guidance * off).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
        run.note(loss=loss, right=right, norm=norm, **({} if off is None else {"off": off}))
        if run.spent - judged > arguments.judge_every:
            with average.applied():
                run.write_log(**evaluate(model, material, device, arguments.spoken))
            judged = run.spent
    with average.applied():
        run.write_log(**evaluate(model, material, device, arguments.spoken))
    keep_weights(arguments.out, average.module_state(), asdict(config))
    return model


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    add_arguments(options, seconds=300)
    options.add_argument("--codes", type=Path, help="the corpus's codes; by default `codes` beside --out")
    options.add_argument("--text", type=Path, help=f"the text tokenizer; by default `text/{FILE}` beside --out")
    options.add_argument("--tokenizer", type=Path, help="of training.tokenizer; by default `tokenizer` beside --out")
    options.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    options.add_argument("--decay", type=float, default=0.1, help="weight decay")
    options.add_argument("--dropout", type=float, default=0.1)
    options.add_argument("--guided", type=float, default=1.0, help="first weight of the guided heads' loss")
    options.add_argument("--batch-rows", type=int, default=16_000, help="of text and speech, padding included")
    options.add_argument(
        "--judge-every", type=float, default=120.0, help="seconds between two looks at held-out speech"
    )
    options.add_argument("--judged", type=int, default=300, help="held-out sentences that are looked at")
    options.add_argument(
        "--spoken", type=int, default=16, help="of these, how many T3 says itself; 0: no speech tokenizer is needed"
    )
    return options


def main() -> None:
    train(parser().parse_args(), SMALL.t3)


if __name__ == "__main__":
    main()
