"""From T3's logits to a token: guidance, repetition penalty, temperature, min-p, top-k, top-p, draw.

In the order in which a model was published: the penalty comes first, or else last and on what is kept alone.

Plain torch, on any device; `sampling_kernel` is the same in one launch. Rows are requests, each with its own values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How one request draws its tokens.

    Attributes:
        cfg_weight: guidance towards the text, >= 0; 0 is none.
        temperature: 0 takes the likeliest token.
        min_p: drop tokens less likely than this share of the likeliest.
        top_p: keep the likeliest tokens up to this total probability, above 0 to 1.
        top_k: keep so many of the likeliest tokens, before top-p; 0 keeps all.
        repetition_penalty: > 0; 1 is none.
        max_tokens: most tokens drawn.
    """

    cfg_weight: float
    temperature: float
    min_p: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int


@dataclass(frozen=True)
class RowValues:
    """What the requests of a batch ask for, one row each: all [N, 1] float32.

    Attributes:
        cfg_weight: guidance, >= 0.
        penalty: repetition penalty, > 0; 1 is none.
        temperature: 0 takes the likeliest token.
        min_p: drop tokens less likely than this share of the likeliest.
        top_p: nucleus; None where no row has one below 1.
        top_k: so many of the likeliest, 0 for all; None where no row has one.
    """

    cfg_weight: torch.Tensor
    penalty: torch.Tensor
    temperature: torch.Tensor
    min_p: torch.Tensor
    top_p: torch.Tensor | None
    top_k: torch.Tensor | None


def choose(
    logits: torch.Tensor, values: RowValues, spoken: torch.Tensor, u: torch.Tensor, penalty_last: bool = False
) -> torch.Tensor:
    """The next token of every row, int64 [N].

    Args:
        logits: [N, S * V] float32, S = 1 or 2 streams.
        spoken: [N, V] bool, ids that the penalty falls on.
        u: [N, 1] float64 in [0, 1), the uniform number of the draw.
        penalty_last: the penalty falls on what is kept, after temperature and all restrictions. The likeliest token is
            then the likeliest of what temperature 1 keeps.
    """
    logits = guided(logits, values.cfg_weight, spoken.shape[1])
    if not penalty_last:
        logits = penalized(logits, values.penalty, spoken)
    greedy = values.temperature == 0
    kept = restricted(logits / torch.where(greedy, 1, values.temperature), values.min_p, values.top_k, values.top_p)
    if penalty_last:
        logits = kept = penalized(kept, values.penalty, spoken)
    return torch.where(greedy.squeeze(1), logits.argmax(dim=-1), draw(kept, u))


def guided(logits: torch.Tensor, weight: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """[N, 2V] -> [N, V] = cond + w * (cond - uncond), each row with its own w; [N, V] is left as it is."""
    if logits.shape[1] == vocabulary:
        return logits
    conditional, unconditional = logits[:, :vocabulary], logits[:, vocabulary:]
    return torch.addcmul(conditional, weight, conditional - unconditional)


def penalized(logits: torch.Tensor, penalty: torch.Tensor, spoken: torch.Tensor) -> torch.Tensor:
    """Positive logits of spoken ids divided by the penalty, negative ones multiplied.

    The published rule (Keskar et al., arXiv 1909.05858, with the sign handled), each id once.
    """
    return torch.where(spoken, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def restricted(
    logits: torch.Tensor, min_p: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None
) -> torch.Tensor:
    """-inf for ids less likely than `min_p` of the likeliest, then for all but the top k, then outside the nucleus."""
    probabilities = logits.softmax(dim=-1)
    logits = logits.masked_fill(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))
    if top_k is not None:
        # Ids as likely as the last of them stay, too.
        count = torch.where(top_k > 0, top_k, logits.shape[1]).clamp(max=logits.shape[1]).long()
        least = logits.sort(dim=-1, descending=True).values.gather(1, count - 1)
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is None:
        return logits
    # The least likely ids whose probabilities sum to at most 1 - top_p, but never the likeliest. Of equal ones those of
    # lower id come first.
    ascending, order = logits.sort(dim=-1, stable=True)
    outside = ascending.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64) <= 1 - top_p.double()
    outside[:, -1] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter_(1, order, outside), float("-inf"))


def draw(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Inverts the cumulative distribution at `u`: the first id whose cumulative probability exceeds u times the total.

    Summed in float64 in the order of ids, so for the same logits it is the same token everywhere.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    token = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).squeeze(1)
    return token.clamp_(max=logits.shape[1] - 1)
