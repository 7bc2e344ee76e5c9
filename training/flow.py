"""Trains the flow: speech tokens to mel, by flow matching as the package's solver follows it.

    python -m training.flow --corpus CORPUS --tokens CODES --out OUT --seconds 360 --device cuda --resume

At the end the averaged weights are in OUT/weights.

A streaming flow would be taught with chunked attention here: a mask of allowed keys beside `padding`, drawn anew for
every batch, in the encoder's and the estimator's attention. Neither takes one yet.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import S3GenConfig, T3Config
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING, FlowEncoder, RelativeAttention
from chatterbox_vllm.s3gen.flow.estimator import Estimator
from training.codes import Codes
from training.data import Corpus
from training.frames import Features
from training.loop import Average, Run, adamw, add_arguments, autocast, prepare, rate_at, set_rate
from training.rows import Rows, batches
from training.small import SMALL
from training.t3_model import SharedTable, code_features
from training.weights import keep_weights, load_weights, warm_start

_DROPPED = 0.2  # share of rows that the unconditional stream of the guidance is taught with
_PRIOR = 0.1  # weight of the encoder's mean as a mel of its own
_CLIP = 1.0
_EMBEDDING_DEVIATION = 0.5
_FIRST_BRANCH = 0.2
_ALMOST_LINEAR = 2.0  # Mish is, from here on
_HELD_OUT_EVERY = 200  # steps


class FlowNetworks(nn.Module):
    """The flow's trained parts, named as in `chatterbox_vllm.s3gen.networks`, float32.

    A token's embedding is what its digits share with other tokens' and a part of its own, so that rare tokens are
    known, too. `published_state` adds them up.
    """

    def __init__(self, config: S3GenConfig):
        super().__init__()
        features = code_features(T3Config(speech_vocab_size=config.flow.vocab_size))
        self.codes = SharedTable(features, config.flow.hidden_size, _EMBEDDING_DEVIATION)
        self.encoder = FlowEncoder(config.flow)
        del self.encoder.input_embedding  # `codes` takes its place
        self.speaker = nn.Linear(config.xvector.embedding_size, config.flow.num_mels)
        self.estimator = Estimator(config.flow)

    def initialise(self, mean: torch.Tensor) -> None:
        """Begin with the mel's mean [mels] as what the encoder says, and that less the state as the velocity."""
        for module in self.modules():
            if isinstance(module, RelativeAttention):
                nn.init.zeros_(module.pos_bias_u)
                nn.init.zeros_(module.pos_bias_v)
        with torch.no_grad():
            self.encoder.encoder_proj.bias.copy_(mean)
        pass_through(self.estimator, mean)

    def condition(
        self, tokens: torch.Tensor, xvector: torch.Tensor, prompt_mel: torch.Tensor, padding: torch.Tensor
    ) -> torch.Tensor:
        """What the estimator is told beside its state: [rows, frames, 3 * mels].

        Args:
            tokens: [rows, tokens] int64.
            xvector: [rows, size], as the x-vector net gives it.
            prompt_mel: [rows, frames, mels], zeros behind the prompt.
            padding: [rows, tokens] bool.
        """
        mu = self.encoder.encoder_proj(self.encoder.encoder(F.embedding(tokens, self.codes()), padding))
        speaker = self.speaker(F.normalize(xvector, dim=-1))[:, None].expand(-1, mu.shape[1], -1)
        return torch.cat([mu, speaker, prompt_mel], dim=-1)

    def velocity(
        self, state: torch.Tensor, condition: torch.Tensor, moment: torch.Tensor, padding: torch.Tensor
    ) -> torch.Tensor:
        """[rows, frames, mels] float32 at `moment` [rows], each row at its own."""
        with torch.autocast(moment.device.type, enabled=False):  # float32 always, as at inference
            time = self.estimator.time_table(moment, moment)
        return self.estimator(torch.cat([state, condition], dim=-1), time, padding).float()

    @torch.no_grad()
    def published_state(self) -> dict[str, torch.Tensor]:
        """By the names that `S3GenNetworks` has for them."""
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("codes.")}
        return {**state, "encoder.input_embedding.weight": self.codes()}


@torch.no_grad()
def pass_through(estimator: Estimator, mean: torch.Tensor) -> None:
    """Let the state go through the net unchanged at first, every block adding a little, and give mean - state.

    The velocity is mel - noise, and nothing leads around the net: without this it takes thousands of steps until the
    noise gets through.
    """
    stages = [*estimator.down_blocks, *estimator.mid_blocks, *estimator.up_blocks]
    for stage in stages:
        resnet, blocks = stage[0], stage[1]
        resnet.block2.block["2"].weight.fill_(_FIRST_BRANCH)
        weight = resnet.res_conv.weight[..., 0]
        if stage in estimator.down_blocks:
            carried = min(mean.shape[0], len(weight))
            weight[:carried] = torch.eye(carried, weight.shape[1])
        else:  # the last stage has the skip beside its input
            weight.copy_(torch.eye(len(weight)).repeat(1, weight.shape[1] // len(weight)))
            weight /= weight.shape[1] // len(weight)
        for block in blocks:
            block.attn1.to_out["0"].weight.mul_(_FIRST_BRANCH)
            block.ff.net["2"].weight.mul_(_FIRST_BRANCH)
    for conv in (*(stage[2] for stage in stages if len(stage) > 2), estimator.final_block.block["0"]):
        conv.weight.mul_(_FIRST_BRANCH)
        conv.weight[..., -1] += torch.eye(len(conv.weight))  # the frame itself
    estimator.final_block.block["2"].bias.fill_(_ALMOST_LINEAR)
    weight = estimator.final_proj.weight[..., 0]
    weight.mul_(_FIRST_BRANCH).sub_(torch.eye(*weight.shape))
    estimator.final_proj.bias.copy_(mean - weight.sum(1) * F.mish(torch.tensor(_ALMOST_LINEAR)))


def load_flow(out: Path, config: S3GenConfig) -> FlowNetworks:
    """The networks from the weights that a training left in `out`."""
    networks = FlowNetworks(config)
    networks.load_state_dict(load_weights(out))
    return networks.eval()


class Batches:
    """The training rows as tensors on the device."""

    def __init__(self, features: Features, codes: Codes, device: torch.device):
        if not np.array_equal(features.counts, codes.counts):
            raise ValueError("the tokens are not those of this corpus; tokenize it again")
        self.device = device
        self._mels = features.mels
        self._tokens = torch.from_numpy(codes.tokens.astype(np.int64)).to(device)
        self._xvectors = torch.from_numpy(codes.xvectors).float().to(device)

    def __call__(self, rows: Rows) -> tuple[torch.Tensor, ...]:
        """(tokens, mel, xvectors, padding, prompt): int64 [rows, tokens], float32 [rows, frames, mels], float32,
        bool [rows, tokens], bool [rows, frames] true in the prompt."""
        packed = np.stack([rows.prompt_begin, rows.prompt_count, rows.begin, rows.count, rows.voice])
        sent = torch.from_numpy(packed)
        if self.device.type == "cuda":
            sent = sent.pin_memory().to(self.device, non_blocking=True)
        prompt_begin, prompt_count, begin, count, voice = (row[:, None] for row in sent)
        step = torch.arange(rows.length, device=self.device)
        padding = step >= prompt_count + count
        place = torch.where(step < prompt_count, prompt_begin + step, begin + step - prompt_count)
        place = place.masked_fill(padding, 0)
        frame = (UPSAMPLING * place[..., None] + torch.arange(UPSAMPLING, device=self.device)).flatten(1)
        prompt = (step < prompt_count).repeat_interleave(UPSAMPLING, dim=1)
        return self._tokens[place], self._mels[frame].float(), self._xvectors[voice[:, 0]], padding, prompt


def losses(
    networks: FlowNetworks,
    batch: tuple[torch.Tensor, ...],
    dropped: torch.Tensor,
    u: torch.Tensor,
    z: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean square errors of the velocity and of the encoder's mean, outside prompts and padding.

    Args:
        batch: from `Batches`.
        dropped: [rows] bool: rows without condition.
        u: [rows] in 0..1, uniform: the moment before the solver's cosine.
        z: [rows, frames, mels], noise.
    """
    tokens, mel, xvectors, padding, prompt = batch
    frame_padding = padding.repeat_interleave(UPSAMPLING, dim=1)
    condition = networks.condition(tokens, xvectors, mel * prompt[..., None], padding)
    mu = condition[..., : mel.shape[-1]].float()
    moment = 1 - torch.cos(u * (0.5 * math.pi))
    t = moment[:, None, None]
    state = (1 - t) * z + t * mel
    velocity = networks.velocity(state, condition.masked_fill(dropped[:, None, None], 0), moment, frame_padding)
    counted = (~frame_padding & ~prompt)[..., None].float()
    size = counted.sum() * mel.shape[-1]
    return (
        ((velocity - (mel - z)).square() * counted).sum() / size,
        ((mu - mel).square() * counted).sum() / size,
    )


def drawn(mel: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments and noise for `losses`; the moments of a batch cover 0 to 1 evenly, which makes the loss less noisy."""
    rows = len(mel)
    shift = torch.rand(1, device=mel.device, generator=generator)
    u = (torch.arange(rows, device=mel.device) / rows + shift) % 1
    u = u[torch.randperm(rows, device=mel.device, generator=generator)]
    return u, torch.randn(mel.shape, device=mel.device, generator=generator)


def train(arguments: argparse.Namespace, config: S3GenConfig = SMALL.s3gen) -> FlowNetworks:
    device = prepare(arguments)
    corpus, codes = Corpus(arguments.corpus), Codes.read(arguments.tokens)
    features = Features.of(corpus, device, config.flow.num_mels)
    networks = FlowNetworks(config)
    networks.initialise(features.mels[:: max(1, len(features.mels) // 100_000)].float().mean(0).cpu())
    networks.to(device)
    optimizer = adamw(networks, arguments.rate)
    warm_start(arguments, networks)
    average = Average(networks, arguments.decay)
    make = Batches(features, codes, device)
    rng = np.random.default_rng(arguments.seed)
    speakers = np.array([u.speaker for u in corpus.utterances])
    held_out = np.setdiff1d(np.arange(len(codes.counts)), corpus.training)
    told = (speakers, codes.counts.astype(np.int64), codes.begins, arguments.frames // UPSAMPLING)
    training = batches(np.array(corpus.training), *told, rng)
    checked = make(next(batches(held_out, *told, np.random.default_rng(0)))) if len(held_out) else None

    run = Run(arguments, model=networks, optimizer=optimizer, average=average)
    for step in run.steps():
        set_rate(optimizer, rate_at(run.progress, arguments.rate))
        batch = make(next(training))
        u, z = drawn(batch[1])
        dropped = torch.rand(len(z), device=device) < _DROPPED
        with autocast(device):
            matching, prior = losses(networks, batch, dropped, u, z)
        (matching + _PRIOR * prior).backward()
        norm = nn.utils.clip_grad_norm_(networks.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        run.note(flow=matching, prior=prior, norm=norm, frames=float(z.shape[0] * z.shape[1]))
        if checked is not None and step % _HELD_OUT_EVERY == 0:
            run.note(held_out=held_out_loss(networks, average, checked, device))
    keep_weights(arguments.out, average.module_state(), asdict(config.flow))
    return networks


@torch.no_grad()
def held_out_loss(
    networks: FlowNetworks, average: Average, batch: tuple[torch.Tensor, ...], device: torch.device
) -> torch.Tensor:
    """The averaged networks' loss on sentences that they were not trained on, always with the same noise."""
    u, z = drawn(batch[1], torch.Generator(device).manual_seed(0))
    with average.applied(), autocast(device):
        return losses(networks, batch, torch.zeros(len(z), dtype=torch.bool, device=device), u, z)[0]


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(arguments, seconds=360)
    arguments.add_argument("--corpus", type=Path, required=True)
    arguments.add_argument("--tokens", type=Path, required=True, help="directory of the corpus's speech tokens")
    arguments.add_argument("--frames", type=int, default=24_000, help="mel frames of a batch")
    arguments.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    arguments.add_argument("--decay", type=float, default=0.999, help="of the average")
    return arguments


if __name__ == "__main__":
    train(parser().parse_args())
