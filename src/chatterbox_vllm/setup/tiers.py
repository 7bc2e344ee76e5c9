"""What fits which card, as data, and how a process is laid out: `Plan`.

A tier is named after the memory of the card, in GB. Its budget is what the whole process stays under, CUDA's context
included; the rest of the card is left to the display and others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.quantization.config import QuantizationConfig

GIB = 1 << 30
Enrolment = Literal["cpu", "released", "kept"]


@dataclass(frozen=True)
class Plan:
    """How one process is laid out.

    Attributes:
        quantization: by component.
        max_model_len: T3's longest prompt and speech together, in positions.
        max_batch_size: most requests that T3 speaks at once.
        max_batched_tokens: most rows that one step of T3 takes in.
        kv_cache_bytes: T3's; None computes it from the model, `max_model_len` and `max_batch_size`.
        graph_sizes: rows that T3's CUDA graphs are recorded for; None takes those of `t3.graph_sizes`.
        s3gen_batch: most utterances that S3Gen voices at once.
        s3gen_frames: most mel frames of a batch of S3Gen, prompts included; a longer utterance goes alone.
        frugal: small workspaces and an allocator without gaps (`cuda.memory.spare_device_memory`).
        enrolment: where the nets that make voices live: "cpu"; on the device and "released" after use, or "kept".
    """

    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    max_model_len: int = 2048
    max_batch_size: int = 16
    max_batched_tokens: int = 2048
    kv_cache_bytes: int | None = None
    graph_sizes: tuple[int, ...] | None = None
    s3gen_batch: int = 32
    s3gen_frames: int = 48_000
    enrolment: Enrolment = "kept"
    frugal: bool = False


# T3 gains little from more than four requests at once there (at full size on two cores 5.9 tokens/s with one, 13.7 with
# four, 15.3 with eight), and each takes 0.36 GiB of the host's memory for keys and values in float32.
CPU_PLAN = Plan(max_batch_size=4, s3gen_batch=1)


@dataclass(frozen=True)
class Tier:
    """A plan for cards of one size.

    Attributes:
        gb: memory of the card.
        budget: bytes on the device that the process stays under.
    """

    gb: int
    budget: int
    plan: Plan


# 1280 positions hold a prompt of 280 rows, which 300 characters stay below, and the published 1000 speech tokens.
_SHORT = 1280
# The voice encoder of the small tiers is on the host, where four bits would cost its embedding 24 % and spare nothing.
_NF4 = QuantizationConfig(t3="bnb-4bit", s3gen="bnb-4bit")
_MIXED = QuantizationConfig(t3="bnb-4bit", s3gen="bnb-8bit")
_INT8 = QuantizationConfig.from_strategy("conservative")

TIERS: tuple[Tier, ...] = (
    Tier(
        gb=4,
        budget=3 * GIB,
        plan=Plan(
            quantization=_NF4,
            max_model_len=_SHORT,
            max_batch_size=1,
            max_batched_tokens=512,
            graph_sizes=(1,),
            s3gen_batch=1,
            s3gen_frames=2_560,
            enrolment="cpu",
            frugal=True,
        ),
    ),
    Tier(
        gb=6,
        budget=4 * GIB,
        plan=Plan(
            quantization=_MIXED,
            max_model_len=_SHORT,
            max_batch_size=4,
            max_batched_tokens=512,
            graph_sizes=(1, 2, 4),
            s3gen_batch=2,
            s3gen_frames=3_000,
            enrolment="cpu",
            frugal=True,
        ),
    ),
    Tier(
        gb=8,
        budget=6 * GIB,
        plan=Plan(
            quantization=_INT8,
            max_batch_size=8,
            max_batched_tokens=1024,
            graph_sizes=(1, 2, 4, 8),
            s3gen_batch=4,
            s3gen_frames=5_500,
            enrolment="released",
        ),
    ),
    Tier(
        gb=12,
        budget=9 * GIB,
        plan=Plan(max_batch_size=16, graph_sizes=(1, 2, 4, 8, 16), s3gen_batch=8, s3gen_frames=10_000),
    ),
    Tier(gb=24, budget=20 * GIB, plan=Plan(max_batch_size=48, s3gen_batch=16, s3gen_frames=24_000)),
    Tier(gb=48, budget=42 * GIB, plan=Plan(max_batch_size=128, s3gen_batch=32, s3gen_frames=48_000)),
)


def tier_named(name: str | int) -> Tier:
    """The tier of a card of that many GB.

    Raises:
        ConfigError: there is none.
    """
    for tier in TIERS:
        if str(tier.gb) == str(name).strip():
            return tier
    raise ConfigError(f"tier must be auto or one of {', '.join(str(t.gb) for t in TIERS)} (GB), not {name!r}")


def tier_for(free_bytes: int) -> Tier:
    """The largest tier whose budget is free.

    Raises:
        DeviceError: not even the smallest one's is.
    """
    fitting = [tier for tier in TIERS if tier.budget <= free_bytes]
    if not fitting:
        raise DeviceError(
            f"{free_bytes / GIB:.2f} GiB are free on the device, the smallest tier ({TIERS[0].gb} GB) may take "
            f"{TIERS[0].budget / GIB:.0f} GiB; end what else runs there, or use device='cpu'"
        )
    return fitting[-1]
