"""S3Gen alone, put together to convert recordings: neither T3 nor vLLM is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.caches.primitives import bound_primitive_caches
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cuda.memory import spare_device_memory
from chatterbox_vllm.engine.engine import Engine
from chatterbox_vllm.engine.listening import SourceReader
from chatterbox_vllm.engine.preparation import Preparation
from chatterbox_vllm.engine.scheduler import Scheduler
from chatterbox_vllm.engine.talker import NoTalker
from chatterbox_vllm.errors import DeviceError
from chatterbox_vllm.families.layout import check_module_file
from chatterbox_vllm.families.registry import family_of
from chatterbox_vllm.quantization.config import AUTO, QuantizationConfig
from chatterbox_vllm.quantization.files import scheme_in_force
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.settings import MAX_BATCH_SIZE, positive
from chatterbox_vllm.setup.device import check_card
from chatterbox_vllm.setup.planning import Settings, automatic_tier
from chatterbox_vllm.setup.preflight import cpu_watermarker, free_bytes
from chatterbox_vllm.setup.support import require_support
from chatterbox_vllm.setup.tiers import CPU_PLAN, GIB, Plan, tier_named
from chatterbox_vllm.setup.voicing import start_synthesis
from chatterbox_vllm.t3.quantization.methods import method_in_force
from chatterbox_vllm.voices.hearing import Hearing, Target

_PREPARING_THREADS = 2
_ENROLMENT = ("tokenizer.", "speaker_encoder.")  # of the file, what is no part of the generator


@dataclass(frozen=True)
class Converter:
    """S3Gen in memory.

    Attributes:
        target: the built-in voice's speaker, where there is one.
    """

    config: ModelConfig
    engine: Engine[NoTalker]
    hearing: Hearing
    target: Target | None


def conversion_plan(
    settings: Settings,
    tier: str | int | None = None,
    quantize_s3gen: bool | str | None = None,
    max_batch_size: int | None = None,
) -> Plan:
    """S3Gen's share of the plan that keywords, environment and tier make together.

    Raises:
        ConfigError: a value that cannot be used.
        DeviceError: `tier="auto"` and too little is free.
    """
    on_cuda = settings.device.type == "cuda"
    chosen = None if tier is None else automatic_tier(settings.device) if tier == AUTO else tier_named(tier)
    base = chosen.plan if chosen is not None else Plan() if on_cuda else CPU_PLAN
    methods = QuantizationConfig.from_options(
        True if quantize_s3gen else None,
        quantize_s3gen=quantize_s3gen,
        base=None if chosen is None else base.quantization.beside(settings.stored),
        stored=settings.stored,
    )
    quantization = QuantizationConfig()
    if methods is not None:
        quantization = QuantizationConfig(s3gen=methods.s3gen, double_quant=methods.double_quant)
    size = MAX_BATCH_SIZE.resolve(max_batch_size, positive, base.max_batch_size)
    # As in `make_plan`: on a CPU one recording fills the cores, and in float32 each is to be the same in any company.
    alone = not on_cuda or settings.flow_dtype == torch.float32
    return replace(
        base, quantization=quantization, max_batch_size=size, s3gen_batch=1 if alone else min(size, base.s3gen_batch)
    )


def load_converter(settings: Settings, plan: Plan) -> Converter:
    """Read S3Gen's file and start its stage.

    Raises:
        ConfigError, CheckpointError, DeviceError
    """
    bound_primitive_caches()
    directory, device, config = settings.directory, settings.device, settings.config
    check_card(device)
    if plan.frugal and device.type == "cuda":
        spare_device_memory(device)
    family = family_of(config.family, directory)
    stored, weights = config.quantized.s3gen, Weights(directory / family.s3gen)
    asked = plan.quantization
    wanted = replace(asked, s3gen=method_in_force(asked.s3gen, stored, str(weights.path)))
    require_support(wanted, device, torch.float32)
    check_module_file(config, "s3gen", weights)
    _check_room(weights, settings)
    aside = torch.device("cpu") if plan.enrolment == "cpu" else device
    watermarker = None
    if settings.watermark:
        watermarker = cpu_watermarker() if aside.type == "cpu" else Watermarker(aside)
        watermarker.load()
    hearing = Hearing(config, weights, aside, keep=plan.enrolment != "released")
    builtin = directory / family.builtin_voice
    target = hearing.read(builtin) if builtin.exists() else None
    s3gen = S3Gen.from_weights(
        config.s3gen,
        weights,
        device,
        settings.flow_dtype,
        settings.vocoder_dtype,
        cuda_graphs=settings.cuda_graphs,
        quantization=scheme_in_force(wanted, "s3gen", stored),
    )
    steps = family.defaults_of(config).diffusion_steps
    voicing = start_synthesis(s3gen, plan, watermarker, device, target, steps)
    talker = NoTalker()
    scheduler = Scheduler(
        config.t3,
        Preparation(None, _PREPARING_THREADS, SourceReader(config, hearing)),
        talker,
        voicing,
        max_admitted=plan.max_batch_size,
        max_waiting=max(4, 2 * plan.s3gen_batch),
        lookahead=config.s3gen.flow.lookahead,
    )
    return Converter(config, Engine(scheduler, talker, voicing), hearing, target)


def _check_room(weights: Weights, settings: Settings) -> None:
    """Refuse to load where the generator's weights alone are more than what is free.

    Raises:
        DeviceError
    """
    keys = (key for key in weights.keys if not key.startswith(_ENROLMENT))
    needed = sum(math.prod(weights.shape(key)) for key in keys) * settings.flow_dtype.itemsize
    free = free_bytes(settings.device)
    if settings.config.quantized.s3gen is None and needed > free:
        raise DeviceError(
            f"S3Gen's weights take {needed / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free on {settings.device}: end "
            "what else runs there, or give quantize_s3gen or another device"
        )
