"""`sampling.choose` as one Triton kernel: a program a request, its whole vocabulary in registers."""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_WARPS = 16


@triton.jit
def _choose(
    logits, values, slots, step, mask, out, rows, width,
    VOCABULARY: tl.constexpr, STREAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    weight = tl.load(values + row * width)
    penalty = tl.load(values + row * width + 1)
    temperature = tl.load(values + row * width + 2)
    min_p = tl.load(values + row * width + 3)
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
        values: [N, >= 4] float32: cfg weight, repetition penalty, temperature, min-p (see `RowValues`; no top-p here).
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
