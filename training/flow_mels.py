"""Mels of a corpus as a trained flow makes them of its tokens: what the vocoder will hear at inference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.flow.solver import solve, step_of, time_span, velocity_of
from training.codes import Codes
from training.data import Corpus
from training.flow import Batches, FlowNetworks, load_flow
from training.frames import Features
from training.loop import autocast
from training.rows import batches

_STEPS = 10
_FRAMES = 48_000  # of a batch


@torch.no_grad()
def replace_by_flow(
    features: Features, corpus: Corpus, tokens: Path, flow: Path, config: S3GenConfig, seed: int
) -> None:
    """Overwrite the training utterances' mels in `features`; the parts that serve as their own prompt stay recorded."""
    device = features.mels.device
    networks = load_flow(flow, config).to(device)
    codes = Codes.read(tokens)
    make = Batches(features, codes, device)
    made = features.mels.clone()
    training = np.array(corpus.training)
    speakers = np.array([u.speaker for u in corpus.utterances])
    counts = codes.counts.astype(np.int64)
    source = batches(training, speakers, counts, codes.begins, _FRAMES // UPSAMPLING, np.random.default_rng(seed))
    done = 0
    while done < len(training):  # each comes once before any comes again
        rows = next(source)
        done += len(rows.begin)
        batch = make(rows)
        with autocast(device):
            mel = flow_mel(networks, batch, config.flow.cfg_rate, torch.randn_like(batch[1]))
        step = torch.arange(2 * rows.length, device=device)
        parts = (rows.prompt_count, rows.begin, rows.count)
        first, begin, count = (UPSAMPLING * torch.from_numpy(part).to(device)[:, None] for part in parts)
        spoken = (step >= first) & (step < first + count)
        made[(begin + step - first)[spoken]] = mel[spoken].half()
    features.mels.copy_(made)


@torch.no_grad()
def flow_mel(networks: FlowNetworks, batch: tuple[torch.Tensor, ...], cfg_rate: float, z: torch.Tensor) -> torch.Tensor:
    """[rows, frames, mels] by the package's solver from the noise `z`; prompt and padding carry no meaning.

    Args:
        batch: from `training.flow.Batches`.
    """
    tokens, mel, xvectors, padding, prompt = batch
    condition = networks.condition(tokens, xvectors, mel * prompt[..., None], padding).float()
    span = time_span(_STEPS, cosine=True).to(mel.device)
    with torch.autocast(mel.device.type, enabled=False):
        times = networks.estimator.time_table(span[:-1], span[1:])[:, None]
    both = padding.repeat_interleave(UPSAMPLING, dim=1).repeat(2, 1)
    return solve(step_of(velocity_of(networks.estimator, cfg_rate)), z.clone(), condition, span, times, (both,))
