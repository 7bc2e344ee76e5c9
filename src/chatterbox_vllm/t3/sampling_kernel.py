"""`sampling.choose` as one Triton kernel: a program a request, its whole vocabulary in registers."""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_WARPS = 16


@triton.jit
def _nucleus(p, ids, top_p):
    # Zero for the least likely ids whose probabilities sum to at most 1 - top_p, of equal ones those of lower id first.
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
    return tl.where(goes & (ids != last), 0.0, p)


# What differs from batch to batch is no constant, so that the kernel is compiled once.
@triton.jit(do_not_specialize=["rows", "width"])
def _choose(
    logits, values, slots, step, mask, out, rows, width,
    VOCABULARY: tl.constexpr, STREAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    weight = tl.load(values + row * width)
    penalty = tl.load(values + row * width + 1)
    temperature = tl.load(values + row * width + 2)
    min_p = tl.load(values + row * width + 3)
    top_p = tl.load(values + row * width + 4)
    u = tl.load(step + row)
    fresh = tl.load(step + rows + row).to(tl.int32)
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
    x = tl.where(spoken, tl.where(x < 0, x * penalty, x / penalty), x)
    x = tl.where(there, x, float("-inf"))
    best = tl.max(x, 0)
    if temperature == 0:
        token = tl.min(tl.where(x == best, ids, BLOCK), 0)
    else:
        p = tl.exp((x - best) / temperature)
        p = tl.where(p < min_p, 0.0, p)
        if top_p < 1:
            p = _nucleus(p, ids, top_p)
        cumulative = tl.cumsum(p.to(tl.float64), 0)
        token = tl.sum((there & (cumulative <= u * tl.max(cumulative, 0))).to(tl.int32), 0)
        token = tl.minimum(token, VOCABULARY - 1)
    one_hot = tl.where(ids == token, 0.0, float("-inf"))
    tl.store(out + row.to(tl.int64) * VOCABULARY + ids, one_hot, mask=there)


def choose_one_hot(
    logits: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, step: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """[N, V] float32: zero at each row's chosen token, -inf elsewhere.

    Args:
        logits: [N, S * V] float32, contiguous.
        values: [N, 5] float32: cfg weight, repetition penalty, temperature, min-p, top-p (see `RowValues`).
        slots: [N] int32, each request's row of `mask`.
        step: [2, N] float64: the uniform number of the draw; the token spoken last, to be marked in the mask, or -1.
        mask: [slots, V] bool, spoken ids; rows that are not in `slots` stay as they are.
    """
    rows, vocabulary = len(logits), mask.shape[1]
    out = torch.empty(rows, vocabulary, dtype=torch.float32, device=logits.device)
    _choose[(rows,)](
        logits, values, slots, step, mask.view(torch.uint8), out, rows, values.stride(0),
        vocabulary, logits.shape[1] // vocabulary, triton.next_power_of_2(vocabulary), num_warps=_WARPS,
    )  # fmt: skip
    return out


def compile_choice(streams: int, mask: torch.Tensor) -> None:
    """Compile the kernel for masks like `mask` and that many streams, by a row that marks nothing."""
    device = mask.device
    choose_one_hot(
        torch.zeros(1, streams * mask.shape[1], device=device),
        torch.ones(1, 5, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.full((2, 1), -1.0, dtype=torch.float64, device=device),
        mask,
    )
