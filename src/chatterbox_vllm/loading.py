"""From what a user asks for to a model in memory: the plan, its parts put together, and what to try where it fails."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.checkpoint import Weights
from chatterbox_vllm.config import ModelConfig
from chatterbox_vllm.engine.kv_cache import least_kv_cache_bytes
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.runtime import resolve_device, spare_device_memory
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.scheduler import Scheduler
from chatterbox_vllm.engine.t3_stage import T3Options, T3Stage
from chatterbox_vllm.engine.voicing import Voicing, make_voicing
from chatterbox_vllm.errors import ChatterboxError, CheckpointError, ConfigError, DeviceError
from chatterbox_vllm.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.families import FAMILIES
from chatterbox_vllm.layout import check_module_file, check_t3
from chatterbox_vllm.models.s3gen.model import S3Gen
from chatterbox_vllm.models.t3.conditioning import PromptBuilder
from chatterbox_vllm.quantization.config import AUTO, QuantizationConfig
from chatterbox_vllm.quantization.environment import (
    GPU_MEMORY_UTILIZATION,
    MAX_BATCH_SIZE,
    MAX_MODEL_LEN,
    positive,
    share,
)
from chatterbox_vllm.quantization.files import scheme_in_force
from chatterbox_vllm.quantization.support import require_support
from chatterbox_vllm.quantization.t3 import automatic_dtype, method_in_force
from chatterbox_vllm.text.tokenizer import EnglishTokenizer
from chatterbox_vllm.tiers import CPU_PLAN, GIB, Plan, Tier, tier_for, tier_named
from chatterbox_vllm.voices import Voice, VoiceEnroller

logger = logging.getLogger(__name__)

DType = Literal["auto", "float32", "float16", "bfloat16"]
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What does not depend on the plan: files, device, dtypes and switches."""

    directory: Path
    device: torch.device
    t3_dtype: torch.dtype
    flow_dtype: torch.dtype
    cuda_graphs: bool
    deterministic: bool
    watermark: bool

    @property
    def vocoder_dtype(self) -> torch.dtype:
        """The vocoder's convolutions lose nothing audible in float16; its pitch, source and spectra stay in float32."""
        return torch.float32 if self.flow_dtype == torch.float32 else torch.float16


@dataclass(frozen=True)
class Parts:
    """A model in memory, and the plan that it was laid out by."""

    plan: Plan
    scheduler: Scheduler
    talker: T3Stage
    voicing: Voicing
    enroller: VoiceEnroller
    voice: Voice | None


def make_settings(
    directory: Path,
    device: str,
    *,
    dtype: DType,
    s3gen_dtype: DType,
    cuda_graphs: bool | None,
    deterministic: bool,
    watermark: bool,
    t3_method: str | None,
) -> Settings:
    """What the keywords of `ChatterboxTTS.from_local` mean on this machine; `t3_method` is the one asked for.

    Raises:
        ConfigError: a value that cannot be used, or not here.
        CheckpointError: there is no such directory.
        DeviceError: there is no such device.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory of model files")
    where = resolve_device(device)
    on_cuda = where.type == "cuda"
    if cuda_graphs and not on_cuda:
        raise ConfigError("cuda_graphs=True needs a CUDA device; leave it out on the CPU")
    stored = ModelConfig.from_directory(directory).quantized.t3
    return Settings(
        directory=directory,
        device=where,
        t3_dtype=_dtype("dtype", dtype, automatic_dtype(stored.method if stored else t3_method, where)),
        flow_dtype=_dtype("s3gen_dtype", s3gen_dtype, torch.float16 if on_cuda else torch.float32),
        cuda_graphs=on_cuda if cuda_graphs is None else cuda_graphs,
        deterministic=deterministic,
        watermark=watermark,
    )


def _dtype(name: str, value: str, automatic: torch.dtype) -> torch.dtype:
    if value == "auto":
        return automatic
    if value not in _DTYPES:
        raise ConfigError(f"{name} must be 'auto' or one of {', '.join(map(repr, _DTYPES))}, not {value!r}")
    return _DTYPES[value]


def strategy_for(strategy: str, device: torch.device) -> QuantizationConfig:
    """The configuration of a strategy's name.

    "auto" is what the tier of the GPU's free memory quantizes, and "conservative" on a CPU.

    Raises:
        ConfigError: no such strategy.
        DeviceError: the GPU has less free than the smallest tier may take.
    """
    if strategy != AUTO:
        return QuantizationConfig.from_strategy(strategy)
    if device.type != "cuda":
        return QuantizationConfig.from_strategy("conservative")
    return tier_for(torch.cuda.mem_get_info(device)[0]).plan.quantization


def make_plan(
    settings: Settings,
    *,
    tier: str | int | None = None,
    quantization: QuantizationConfig | None = None,
    max_model_len: int | None = None,
    max_batch_size: int | None = None,
    kv_cache_bytes: int | None = None,
    gpu_memory_utilization: float | None = None,
) -> Plan:
    """What keywords, environment, tier and defaults make together, in this order of precedence.

    A part whose file is quantized already is no tier's to quantize.

    Raises:
        ConfigError: a value that cannot be used, or more than the tier's budget holds; the message names the keyword or
            the variable.
        DeviceError: `tier="auto"` and too little is free.
    """
    on_cuda = settings.device.type == "cuda"
    chosen = None if tier is None else automatic_tier(settings.device) if tier == AUTO else tier_named(tier)
    default = Plan() if on_cuda else CPU_PLAN
    base = default if chosen is None else chosen.plan
    if quantization is None:
        quantization = base.quantization.beside(ModelConfig.from_directory(settings.directory).quantized)
    plan = replace(
        base,
        quantization=quantization,
        max_model_len=MAX_MODEL_LEN.resolve(max_model_len, positive, base.max_model_len),
        max_batch_size=MAX_BATCH_SIZE.resolve(max_batch_size, positive, base.max_batch_size),
        kv_cache_bytes=kv_cache_bytes,
    )
    # On a CPU one utterance fills the cores; on a GPU more than 32 bring no speed and take memory. In float32 every
    # utterance goes alone, so that it is the same in any company: the vocoder's phase, a running sum of pitch, makes a
    # thousandth of the last bit of a mel.
    alone = not on_cuda or settings.flow_dtype == torch.float32
    plan = replace(plan, s3gen_batch=1 if alone else min(plan.max_batch_size, plan.s3gen_batch))
    used = GPU_MEMORY_UTILIZATION.resolve(gpu_memory_utilization, share, None)
    if used is not None:
        plan = _with_share(plan, settings, used, kv_cache_bytes, gpu_memory_utilization is not None)
    if chosen is not None and on_cuda:
        needed = _estimator(settings).estimate(plan).device_total
        if needed > chosen.budget:
            raise ConfigError(
                f"tier {chosen.gb} promises to stay under {chosen.budget / GIB:.2f} GiB, and with "
                f"max_model_len={plan.max_model_len}, max_batch_size={plan.max_batch_size} and {plan.quantization} "
                f"{needed / GIB:.2f} GiB are to be expected; lower them or name a larger tier"
            )
    return plan


def automatic_tier(device: torch.device) -> Tier:
    """The tier of what is free on a GPU.

    Raises:
        ConfigError: the device is a CPU.
        DeviceError: see `tier_for`.
    """
    if device.type != "cuda":
        raise ConfigError("tier='auto' goes by the free memory of a GPU; on a CPU name a tier, or leave it out")
    return tier_for(torch.cuda.mem_get_info(device)[0])


def _with_share(plan: Plan, settings: Settings, used: float, kv_cache_bytes: int | None, by_keyword: bool) -> Plan:
    """`plan` with what a share of the card leaves for the KV cache."""
    if kv_cache_bytes is not None:
        if by_keyword:
            raise ConfigError("give either kv_cache_bytes or gpu_memory_utilization: one follows from the other")
        return plan
    if settings.device.type != "cuda":
        where = "gpu_memory_utilization" if by_keyword else GPU_MEMORY_UTILIZATION.variable
        raise ConfigError(f"{where}={used} needs a CUDA device; leave it out on a CPU")
    estimator = _estimator(settings)
    total = torch.cuda.mem_get_info(settings.device)[1]
    left = int(used * total) - estimator.estimate(replace(plan, kv_cache_bytes=1)).device_total
    least = least_kv_cache_bytes(
        estimator.config.t3, settings.t3_dtype.itemsize, plan.max_model_len, settings.device.type
    )
    if left < least:
        raise ConfigError(
            f"gpu_memory_utilization={used} of {total / GIB:.2f} GiB leaves {max(left, 0) / GIB:.2f} GiB for the KV "
            f"cache; max_model_len={plan.max_model_len} needs {least / GIB:.2f} GiB: raise the one or lower the other"
        )
    return replace(plan, kv_cache_bytes=left)


def _estimator(settings: Settings) -> QuantizationMemoryEstimator:
    half = settings.t3_dtype != torch.float32
    return QuantizationMemoryEstimator(settings.directory, half, settings.device.type == "cuda")


def load(settings: Settings, plan: Plan, fallback: bool) -> tuple[Parts, tuple[str, ...]]:
    """The model, and the steps that it took to get there.

    Args:
        fallback: where a quantization cannot be had, try `QuantizationConfig.steps_down` in turn.

    Raises:
        ConfigError, CheckpointError, DeviceError: of the last attempt.
    """
    steps: list[str] = []
    # A quantized file stays what it is.
    left = plan.quantization.beside(ModelConfig.from_directory(settings.directory).quantized)
    weaker = left.steps_down() if fallback else iter(())
    while True:
        try:
            return assemble(settings, plan), tuple(steps)
        except (ConfigError, DeviceError) as error:
            step, config = next(weaker, (None, None))
            if step is None or config is None:
                raise
            logger.warning("stepping down from %s to %s: %s", plan.quantization, step, error)
            steps.append(step)
            plan = replace(plan, quantization=config)


def assemble(settings: Settings, plan: Plan) -> Parts:
    """Read the files and start the stages.

    Raises:
        ConfigError, CheckpointError, DeviceError
    """
    directory, device, quantization = settings.directory, settings.device, plan.quantization
    if plan.frugal and device.type == "cuda":
        spare_device_memory()
    config = ModelConfig.from_directory(directory)
    require_support(in_force(quantization, directory, config), device, settings.t3_dtype)
    options = T3Options(
        dtype=settings.t3_dtype,
        max_model_len=plan.max_model_len,
        max_batch_size=plan.max_batch_size,
        kv_cache_bytes=plan.kv_cache_bytes,
        cuda_graphs=settings.cuda_graphs,
        max_batched_tokens=plan.max_batched_tokens,
        deterministic=settings.deterministic,
        quantization=quantization.t3,
        double_quant=quantization.double_quant,
        graph_sizes=plan.graph_sizes,
    )
    family = FAMILIES[config.family]
    # Everything cheap is read and checked before the engine starts.
    tokenizer = EnglishTokenizer(directory / family.tokenizer)
    t3_weights, s3gen_weights, encoder_weights = (
        Weights(directory / file) for file in (family.t3, family.s3gen, family.voice_encoder)
    )
    check_t3(config, t3_weights)
    s3gen_scheme = scheme_in_force(quantization, "s3gen", config.quantized.s3gen)
    encoder_scheme = scheme_in_force(quantization, "voice_encoder", config.quantized.voice_encoder)
    check_module_file(config, "s3gen", s3gen_weights)
    check_module_file(config, "voice_encoder", encoder_weights)
    builtin = directory / family.builtin_voice
    voice = Voice.load(builtin, config) if builtin.exists() else None
    aside = torch.device("cpu") if plan.enrolment == "cpu" else device
    enroller = VoiceEnroller(
        config,
        s3gen_weights,
        encoder_weights,
        device=aside,
        quantization=encoder_scheme,
        keep=plan.enrolment != "released",
    )
    builder = PromptBuilder.from_weights(config.t3, t3_weights)
    watermarker = Watermarker(aside) if settings.watermark else None
    s3gen = S3Gen.from_weights(
        config.s3gen,
        s3gen_weights,
        device,
        settings.flow_dtype,
        settings.vocoder_dtype,
        cuda_graphs=settings.cuda_graphs,
        quantization=s3gen_scheme,
    )
    talker = T3Stage(config.t3, t3_weights, options, device)
    voicing = make_voicing(S3GenStage(s3gen, plan.s3gen_batch, plan.s3gen_frames), watermarker, device)
    if voice is not None:
        try:
            voicing.warm_up(voice)
        except ChatterboxError as error:
            voicing.close()
            talker.close()
            raise DeviceError(f"S3Gen cannot start: {error}") from error
    scheduler = Scheduler(
        config.t3,
        PromptMaker(tokenizer, builder, plan.max_model_len),
        talker,
        voicing,
        # Enough queued that T3's batch stays full.
        max_admitted=2 * plan.max_batch_size,
        max_waiting=max(16, 4 * plan.s3gen_batch),
    )
    return Parts(plan, scheduler, talker, voicing, enroller, voice)


def in_force(wanted: QuantizationConfig, directory: Path, config: ModelConfig) -> QuantizationConfig:
    """The methods that a directory's parts get: as their files are quantized, else as asked for.

    Raises:
        ConfigError: another method is asked for than a file holds, AWQ without a file of it, or the family is unknown.
    """
    if config.family not in FAMILIES:
        raise ConfigError(f"{directory}: unknown model family {config.family!r}; known: {', '.join(FAMILIES)}")
    files = {part: str(directory / getattr(FAMILIES[config.family], part)) for part in wanted.methods}
    methods = {
        part: method_in_force(method, getattr(config.quantized, part), files[part])
        for part, method in wanted.methods.items()
    }
    return QuantizationConfig(**methods, double_quant=wanted.double_quant)
