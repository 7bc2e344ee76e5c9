"""`noise.normal` as one Triton kernel: the same integers, the same formula, one launch and no intermediate tensors."""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from chatterbox_vllm.s3gen import noise

_PAIRS = 1024  # of a program
_NUMBERS = 1024  # likewise, where rows have their own seeds
_GAMMA = tl.constexpr(noise.GAMMA)
_MIX_1 = tl.constexpr(noise.MIX_1)
_MIX_2 = tl.constexpr(noise.MIX_2)


@triton.jit
def _mixed(x):
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _uniform(bits):
    return (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10


# The types are named, and values make no variants, so that the kernel is compiled once.
@triton.jit(do_not_specialize=["seed", "use", "first", "count"])
def _normal(out, seed: tl.int64, use: tl.int64, first: tl.int64, count: tl.int64, PAIRS: tl.constexpr):
    channel = tl.program_id(0).to(tl.int64)
    seed, use, first = seed.to(tl.int64), use.to(tl.int64), first.to(tl.int64)  # the interpreter goes by the value
    pair = first // 2 + tl.program_id(1) * PAIRS + tl.arange(0, PAIRS)
    key = _mixed(_mixed(_mixed(seed) + use * _GAMMA) + (channel + 1) * _GAMMA)
    word = _mixed(key + (pair + 1) * _GAMMA)
    radius = tl.sqrt(-2.0 * tl.log(_uniform((word >> 32) & 0xFFFFFFFF)))
    angle = _uniform(word & 0xFFFFFFFF) * 6.283185307179586
    at = 2 * pair - first
    out += channel * count
    tl.store(out + at, radius * tl.cos(angle), mask=(at >= 0) & (at < count))
    tl.store(out + at + 1, radius * tl.sin(angle), mask=at + 1 < count)


def normal(seed: int, use: int, channels: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """As `noise.normal`."""
    out = torch.empty(channels, count, dtype=torch.float32, device=device)
    if count:
        blocks = triton.cdiv((first + count + 1) // 2 - first // 2, _PAIRS)
        _normal[(channels, blocks)](out, seed, use, first, count, _PAIRS)
    return out


# Tables may lie anywhere in a larger one: their alignment makes no variants.
@triton.jit(do_not_specialize=["seeds", "uses", "firsts", "rows", "channels", "count"])
def _normal_rows(
    out, seeds, uses, firsts, rows, channels, count, ROWS: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    channel = (tl.program_id(0) % channels).to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    at = (tl.program_id(0) // channels) * NUMBERS + tl.arange(0, NUMBERS)
    there = row < rows
    seed, use = tl.load(seeds + row, mask=there, other=0), tl.load(uses + row, mask=there, other=0)
    place = tl.load(firsts + row, mask=there, other=0)[:, None] + at[None, :]
    key = _mixed(_mixed(_mixed(seed) + use * _GAMMA) + (channel + 1) * _GAMMA)
    word = _mixed(key[:, None] + (place // 2 + 1) * _GAMMA)
    radius = tl.sqrt(-2.0 * tl.log(_uniform((word >> 32) & 0xFFFFFFFF)))
    angle = _uniform(word & 0xFFFFFFFF) * 6.283185307179586
    value = radius * tl.where(place % 2 == 0, tl.cos(angle), tl.sin(angle))
    to = (row[:, None] * channels + channel) * count + at[None, :]
    tl.store(out + to, value, mask=there[:, None] & (at < count)[None, :])


def normal_rows(
    seeds: torch.Tensor, uses: torch.Tensor, first: torch.Tensor, channels: int, count: int
) -> torch.Tensor:
    """As `noise.normal_rows`."""
    rows = len(seeds)
    seeds, uses, first = (table.contiguous() for table in (seeds, uses, first))
    out = torch.empty(rows, channels, count, dtype=torch.float32, device=seeds.device)
    if out.numel():
        numbers = min(_NUMBERS, triton.next_power_of_2(count))
        together = _NUMBERS // numbers
        _normal_rows[(channels * triton.cdiv(count, numbers), triton.cdiv(rows, together))](
            out, seeds, uses, first, rows, channels, count, together, numbers
        )
    return out
