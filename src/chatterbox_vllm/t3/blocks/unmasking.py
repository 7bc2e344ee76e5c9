"""One step of filling in blocks: which tokens are drawn, how sure the model is of each, and which of them stay.

A position's score is its token's pointwise mutual information with what came before: how much likelier the model holds
it than it would without text, voice and past. Plain torch, on any device; rows are requests, each at its own step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch

from chatterbox_vllm.checkpoint.config import BlockDecoding
from chatterbox_vllm.t3.draws import uniforms
from chatterbox_vllm.t3.sampling import draw

_LEAST = 1e-8  # probability that a score counts with
_TINY = 1e-10  # keeps the logarithms of the Gumbel noise finite


@dataclass(frozen=True)
class StepValues:
    """What a step needs of each request: all [N, 1].

    Attributes:
        cfg_weight: float32, guidance, >= 0.
        temperature: float32, 0 takes the likeliest token.
        step: int64, how many the block had before.
        least: int64, positions to fill in at least, from `schedule`.
    """

    cfg_weight: torch.Tensor
    temperature: torch.Tensor
    step: torch.Tensor
    least: torch.Tensor


@functools.cache
def schedule(blocks: BlockDecoding, length: int) -> tuple[int, ...]:
    """Positions that each step fills in at least in a block of `length`; together they are all of them.

    After step k of K the share r(k/K) is filled in, r(x) = s x / (1 + (s - 1) x) with s the shift (OmniVoice, 3.4).
    """
    shift, steps = blocks.schedule_shift, blocks.steps
    shares = [shift * x / (1 + (shift - 1) * x) for x in (k / steps for k in range(1, steps))]
    filled = [0, *(round(length * share) for share in shares), length]
    return tuple(after - before for before, after in zip(filled, filled[1:], strict=False))


def block_draws(seeds: np.ndarray, first: np.ndarray, size: int) -> np.ndarray:
    """The uniform numbers of a step: [2, N, size] float64, those that choose tokens and those that choose positions.

    Args:
        seeds: uint64 [N].
        first: uint64 [N], how many steps a request's draws lie behind it: `block * steps + step`.
    """
    numbers = np.arange(2 * size, dtype=np.uint64)
    drawn = uniforms(np.repeat(seeds, 2 * size), (first[:, None] * np.uint64(2 * size) + numbers).reshape(-1))
    return drawn.reshape(len(seeds), 2, size).transpose(1, 0, 2)


def unmask(
    log_probabilities: torch.Tensor,
    masked: torch.Tensor,
    prior: torch.Tensor,
    values: StepValues,
    u: torch.Tensor,
    blocks: BlockDecoding,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a step and where they stay.

    Args:
        log_probabilities: [2, N, size, V] float32, the conditional stream first.
        masked: [N, size] bool, positions that are not filled in yet; a row may have none.
        prior: [V] float32, probabilities without text and voice.
        u: [2, N, size] float64 from `block_draws`.

    Returns:
        tokens [N, size] int64, and [N, size] bool, where they are to be taken.
    """
    conditional, unconditional = log_probabilities.unbind(0)
    weight = values.cfg_weight.unsqueeze(2)
    guided = torch.addcmul(conditional, weight, conditional - unconditional)
    greedy = values.temperature == 0
    drawn = draw((guided / torch.where(greedy, 1, values.temperature).unsqueeze(2)).flatten(0, 1), u[0].reshape(-1, 1))
    tokens = torch.where(greedy, guided.argmax(dim=-1), drawn.view(masked.shape))

    least, known = float(np.log(_LEAST)), prior.clamp(min=_LEAST).log()[tokens]
    own, other = (
        stream.gather(2, tokens.unsqueeze(2)).squeeze(2).clamp(min=least) - known
        for stream in (conditional, unconditional)
    )
    scores = torch.addcmul(own, values.cfg_weight, own - other)
    scores = scores + blocks.position_noise * -(-(u[1].float() + _TINY).log() + _TINY).log()
    return tokens, _best(scores.masked_fill(~masked, -torch.inf), masked, values, blocks)


def _best(scores: torch.Tensor, masked: torch.Tensor, values: StepValues, blocks: BlockDecoding) -> torch.Tensor:
    """[N, size] bool: the positions of the highest scores, as many as the schedule or the quantile asks for."""
    left = masked.sum(dim=1, keepdim=True)
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    take = values.least
    if blocks.time_shift > 0:
        # Linear between two scores, as quantiles are.
        share = (blocks.time_shift * (values.step + 1) / blocks.steps).clamp(max=1)
        below = share * (left - 1).clamp(min=0)
        upper = below.floor().long()
        lower = torch.minimum(upper + 1, (left - 1).clamp(min=0))
        threshold = torch.lerp(ordered.gather(1, upper), ordered.gather(1, lower), below - upper)
        take = torch.maximum(take, (scores >= threshold).sum(dim=1, keepdim=True))
    take = torch.where(values.step == blocks.steps - 1, left, take)
    places = torch.arange(masked.shape[1], device=masked.device)
    return masked & torch.zeros_like(masked).scatter(1, order, places < take)
