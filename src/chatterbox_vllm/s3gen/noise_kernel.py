"""`noise.normal` as one Triton kernel: the same integers, the same formula, one launch and no intermediate tensors."""

# mypy: disable-error-code="no-untyped-def, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from chatterbox_vllm.s3gen import noise

_PAIRS = 1024  # of a program
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
