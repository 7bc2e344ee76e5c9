"""`sampling.choose` as one Triton kernel: a program a request, its whole vocabulary in registers."""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_WARPS = 16


@triton.jit
def _beyond_top(x, top_k):
    # Of logits up to zero, those below the k-th largest. Bit patterns of negative floats have the floats' order once
    # all but the sign is turned around, and span less than an int32. So the k-th is found by halving: the largest that
    # k of them reach.
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    low = tl.min(bits, 0)
    high = tl.max(bits, 0)
    for _ in range(31):
        middle = low + (high - low + 1) // 2
        reached = tl.sum((bits >= middle).to(tl.int32), 0) >= top_k
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    return bits < low


@triton.jit
def _outside_nucleus(p, ids, top_p):
    # The least likely ids whose probabilities sum to at most 1 - top_p, of equal ones those of lower id first.
    # Bit patterns of floats that are not negative have the floats' order, so the largest probability below which all
    # can go is found by halving: below it sums stay within the limit, one step above they do not.
    bits = p.to(tl.int32, bitcast=True)
    best = tl.max(bits, 0)
    limit = (1.0 - top_p.to(tl.float64)) * tl.sum(p.to(tl.float64), 0)
    low = best * 0
    high = best
    for _ in range(31):
        middle = low + (high - low + 1) // 2
        below = tl.sum(tl.where(bits < middle, p, 0.0).to(tl.float64), 0)
        fits = below <= limit
        low = tl.where(fits, middle, low)
        high = tl.where(fits, high, middle - 1)
    below = tl.sum(tl.where(bits < low, p, 0.0).to(tl.float64), 0)
    equal = bits == low
    place = tl.cumsum(equal.to(tl.int32), 0)  # among the equal ones, from 1
    last = tl.max(tl.where(bits == best, ids, -1), 0)
    p64 = p.to(tl.float64)
    goes = (bits < low) | (equal & (below + place.to(tl.float64) * p64 <= limit))
    return goes & (ids != last)


@triton.jit
def _penalized(x, spoken, penalty):
    return tl.where(spoken, tl.where(x < 0, x * penalty, x / penalty), x)


# What differs from batch to batch is no constant, so that the kernel is compiled once.
@triton.jit(do_not_specialize=["rows", "width"])
def _choose(
    logits, values, slots, step, mask, out, rows, width,
    VOCABULARY: tl.constexpr, STREAMS: tl.constexpr, PENALTY_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    weight = tl.load(values + row * width)
    penalty = tl.load(values + row * width + 1)
    temperature = tl.load(values + row * width + 2)
    min_p = tl.load(values + row * width + 3)
    top_p = tl.load(values + row * width + 4)
    top_k = tl.load(values + row * width + 5)
    u = tl.load(step + row)
    fresh = tl.load(step + rows + row).to(tl.int32)
    passing = tl.load(step + 2 * rows + row).to(tl.int32)
    ids = tl.arange(0, BLOCK)
    there = ids < VOCABULARY
    at = logits + row.to(tl.int64) * (STREAMS * VOCABULARY) + ids
    x = tl.load(at, mask=there, other=0.0)
    if STREAMS == 2:
        x += weight * (x - tl.load(at + VOCABULARY, mask=there, other=0.0))
    seen_at = mask + tl.load(slots + row).to(tl.int64) * VOCABULARY
    # The token spoken last is not in the mask yet: other threads of this program would not see it stored.
    spoken = (tl.load(seen_at + ids, mask=there, other=0) != 0) | (ids == fresh)
    tl.store(seen_at + ids, 1, mask=ids == fresh)
    spoken |= ids == passing
    if not PENALTY_LAST:
        x = _penalized(x, spoken, penalty)
    x = tl.where(there, x, float("-inf"))
    best = tl.max(x, 0)
    greedy = temperature == 0
    if greedy and not PENALTY_LAST:
        token = tl.min(tl.where(x == best, ids, BLOCK), 0)
    else:
        temperature = tl.where(greedy, 1.0, temperature)
        p = tl.exp((x - best) / temperature)
        goes = p < min_p
        p = tl.where(goes, 0.0, p)
        if top_k > 0:
            goes |= _beyond_top(tl.where(goes, float("-inf"), (x - best) / temperature), top_k)
            p = tl.where(goes, 0.0, p)
        if top_p < 1:
            goes |= _outside_nucleus(p, ids, top_p)
            p = tl.where(goes, 0.0, p)
        if PENALTY_LAST:
            x = tl.where(goes, float("-inf"), _penalized(x / temperature, spoken, penalty))
            best = tl.max(x, 0)
            p = tl.exp(x - best)
        cumulative = tl.cumsum(p.to(tl.float64), 0)
        token = tl.sum((there & (cumulative <= u * tl.max(cumulative, 0))).to(tl.int32), 0)
        token = tl.minimum(token, VOCABULARY - 1)
        if greedy:
            token = tl.min(tl.where(x == best, ids, BLOCK), 0)
    one_hot = tl.where(ids == token, 0.0, float("-inf"))
    tl.store(out + row.to(tl.int64) * VOCABULARY + ids, one_hot, mask=there)


def choose_one_hot(
    logits: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    step: torch.Tensor,
    mask: torch.Tensor,
    penalty_last: bool = False,
) -> torch.Tensor:
    """[N, V] float32: zero at each row's chosen token, -inf elsewhere.

    Args:
        logits: [N, S * V] float32, contiguous.
        values: [N, 6] float32: cfg weight, repetition penalty, temperature, min-p, top-p, top-k (see `RowValues`).
        slots: [N] int32, each request's row of `mask`.
        step: [3, N] float64: the uniform number of the draw; the token spoken last, to be marked in the mask, or -1; an
            id that the penalty falls on at this step alone, or -1.
        mask: [slots, V] bool, spoken ids; rows that are not in `slots` stay as they are.
        penalty_last: as for `sampling.choose`.
    """
    rows, vocabulary = len(logits), mask.shape[1]
    out = torch.empty(rows, vocabulary, dtype=torch.float32, device=logits.device)
    _choose[(rows,)](
        logits, values, slots, step, mask.view(torch.uint8), out, rows, values.stride(0),
        vocabulary, logits.shape[1] // vocabulary, penalty_last, triton.next_power_of_2(vocabulary), num_warps=_WARPS,
    )  # fmt: skip
    return out


def compile_choice(streams: int, mask: torch.Tensor, penalty_last: bool) -> None:
    """Compile the kernel for masks like `mask`, that many streams and that order, by a row that marks nothing."""
    device = mask.device
    choose_one_hot(
        torch.zeros(1, streams * mask.shape[1], device=device),
        torch.ones(1, 6, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.full((3, 1), -1.0, dtype=torch.float64, device=device),
        mask,
        penalty_last,
    )
