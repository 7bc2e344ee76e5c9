"""From what a user asks for to how a model will run: the settings of its stages, and the plan of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from chatterbox_vllm.checkpoint.config import ModelConfig, QuantizedParts, T3Config
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.quantization.config import AUTO, QuantizationConfig
from chatterbox_vllm.s3gen.prompt import MOST_PROMPT_TOKENS, PROMPT_SECONDS
from chatterbox_vllm.settings import (
    GPU_MEMORY_UTILIZATION,
    MAX_BATCH_SIZE,
    MAX_MODEL_LEN,
    STREAM_PROMPT_SECONDS,
    above_zero,
    positive,
    share,
)
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.setup.tiers import CPU_PLAN, GIB, Plan, Tier, tier_for, tier_named
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.kv_cache import least_kv_cache_bytes
from chatterbox_vllm.t3.quantization.methods import automatic_dtype

DType = Literal["auto", "float32", "float16", "bfloat16"]
D = TypeVar("D")
# A sentence of a dozen words, and the time to say it.
_LEAST_TEXT_TOKENS, _LEAST_SPEECH_TOKENS = 64, 100
# What less costs was not measured.
_LEAST_STREAM_PROMPT_TOKENS = 25
# Twice as many as a stream tells together (chunks.py). Turbo with 186 texts at once on an H200: 838 x real time with
# 18, 763 with 9.
_MULTI_STEP = 18
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """What does not depend on the plan: files, device, dtypes and switches."""

    directory: Path
    device: torch.device
    dtype: torch.dtype | None  # T3's; None goes by device and method
    flow_dtype: torch.dtype
    cuda_graphs: bool
    deterministic: bool
    watermark: bool
    guard: bool = True
    teacher_forcing: bool = False
    stream_prompt: int = MOST_PROMPT_TOKENS  # speech tokens of a stream's prompt
    multi_step: int | None = None  # T3's; None goes by device and mode

    @cached_property
    def config(self) -> ModelConfig:
        """The model's dimensions."""
        return config_of(self.directory)

    @property
    def stored(self) -> QuantizedParts:
        """Which parts' files are quantized."""
        return self.config.quantized

    def t3_dtype(self, method: str | None) -> torch.dtype:
        """What T3 computes in, quantized by `method` where its file is not quantized already."""
        return self.dtype or automatic_dtype(self.stored.t3.method if self.stored.t3 else method, self.device)

    @property
    def t3_multi_step(self) -> int:
        """T3's decode steps for a turn: on a CPU several were no faster, and some modes know one alone."""
        if self.multi_step is not None:
            return self.multi_step
        one = self.deterministic or self.teacher_forcing or self.config.t3.blocks is not None
        return 1 if one or self.device.type != "cuda" else _MULTI_STEP

    @property
    def vocoder_dtype(self) -> torch.dtype:
        """The vocoder's convolutions lose nothing audible in float16; its pitch, source and spectra stay in float32.

        CPUs have no fast convolutions in float16: there they took many times as long.
        """
        half = self.flow_dtype != torch.float32 and self.device.type != "cpu"
        return torch.float16 if half else torch.float32


def make_settings(
    directory: Path,
    device: str,
    *,
    dtype: DType = "auto",
    s3gen_dtype: DType = "auto",
    cuda_graphs: bool | None = None,
    deterministic: bool = False,
    watermark: bool = True,
    guard: bool = True,
    teacher_forcing: bool = False,
    stream_prompt_seconds: float | None = None,
    multi_step: int | None = None,
    with_t3: bool = True,
) -> Settings:
    """What the keywords of `ChatterboxTTS.from_local` mean on this machine.

    Args:
        with_t3: whether vLLM has to run there, too.

    Raises:
        ConfigError: a value that cannot be used, or not here.
        CheckpointError: there is no such directory.
        DeviceError: there is no such device.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory of model files")
    where = resolve_device(device, with_t3)
    on_cuda = where.type == "cuda"
    if cuda_graphs and not on_cuda:
        raise ConfigError("cuda_graphs=True needs a CUDA device; leave it out on the CPU")
    return Settings(
        directory=directory,
        device=where,
        dtype=_dtype("dtype", dtype, None),
        flow_dtype=_dtype("s3gen_dtype", s3gen_dtype, torch.float16 if on_cuda else torch.float32),
        cuda_graphs=on_cuda if cuda_graphs is None else cuda_graphs,
        deterministic=deterministic,
        watermark=watermark,
        guard=guard,
        teacher_forcing=teacher_forcing,
        stream_prompt=STREAM_PROMPT_SECONDS.resolve(stream_prompt_seconds, _prompt_tokens, MOST_PROMPT_TOKENS),
        multi_step=multi_step,
    )


def _prompt_tokens(value: object) -> int:
    """Speech tokens of so many seconds of a prompt."""
    try:
        tokens = 25 * above_zero(value)
    except ValueError:
        tokens = 0.0
    whole = round(tokens)
    if abs(tokens - whole) > 1e-6 or not _LEAST_STREAM_PROMPT_TOKENS <= whole <= MOST_PROMPT_TOKENS:
        least = _LEAST_STREAM_PROMPT_TOKENS / 25
        raise ValueError(f"seconds from {least:g} to {PROMPT_SECONDS} in steps of 0.04, a speech token")
    return whole


def _dtype(name: str, value: str, automatic: D) -> torch.dtype | D:
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


def wanted_quantization(
    settings: Settings, tier: str | int | None, quantization: QuantizationConfig | None, options: Mapping[str, Any]
) -> QuantizationConfig:
    """What to quantize: the configuration itself, or what keywords, environment and tier make part by part.

    Args:
        options: the keywords of `QuantizationConfig.from_options`.

    Raises:
        ConfigError: they contradict each other, or one cannot be used.
        DeviceError: `tier="auto"` and too little is free.
    """
    if quantization is not None:
        if not isinstance(quantization, QuantizationConfig):
            raise ConfigError(
                f"quantization must be a QuantizationConfig, not {quantization!r}; methods and strategies by name are "
                "for quantization_method, and from_pretrained_quantized's quantization_strategy"
            )
        switch = "use_bnb_quantization"  # False where nobody touches it
        if named := [name for name, value in options.items() if value is not None and (name != switch or value)]:
            raise ConfigError(f"give either quantization or {', '.join(named)}: the one says all that the others do")
        return quantization
    chosen = _tier(tier, settings.device)
    base = None if chosen is None else chosen.plan.quantization.beside(settings.stored)
    asked = QuantizationConfig.from_options(**options, base=base, stored=settings.stored)
    return asked or QuantizationConfig()


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
    chosen = _tier(tier, settings.device)
    default = Plan() if on_cuda else CPU_PLAN
    base = default if chosen is None else chosen.plan
    if quantization is None:
        quantization = base.quantization.beside(settings.stored)
    plan = replace(
        base,
        quantization=quantization,
        max_model_len=MAX_MODEL_LEN.resolve(max_model_len, positive, base.max_model_len),
        max_batch_size=MAX_BATCH_SIZE.resolve(max_batch_size, positive, base.max_batch_size),
        kv_cache_bytes=kv_cache_bytes,
    )
    check_model_len(settings.config.t3, plan.max_model_len)
    # On a CPU one utterance fills the cores; on a GPU more than 32 bring no speed and take memory. In float32 every
    # utterance goes alone, so that it is the same in any company: the vocoder's phase, a running sum of pitch, makes a
    # thousandth of the last bit of a mel.
    alone = not on_cuda or settings.flow_dtype == torch.float32
    plan = replace(plan, s3gen_batch=1 if alone else min(plan.max_batch_size, plan.s3gen_batch))
    used = GPU_MEMORY_UTILIZATION.resolve(gpu_memory_utilization, share, None)
    if used is not None:
        plan = _with_share(plan, settings, used, kv_cache_bytes, gpu_memory_utilization is not None)
    if chosen is not None and on_cuda:
        needed = estimator_for(settings, plan).estimate(plan).device_total
        if needed > chosen.budget:
            raise ConfigError(
                f"tier {chosen.gb} promises to stay under {chosen.budget / GIB:.2f} GiB, and with "
                f"max_model_len={plan.max_model_len}, max_batch_size={plan.max_batch_size} and {plan.quantization} "
                f"{needed / GIB:.2f} GiB are to be expected; lower them or name a larger tier"
            )
    return plan


def _tier(tier: str | int | None, device: torch.device) -> Tier | None:
    return None if tier is None else automatic_tier(device) if tier == AUTO else tier_named(tier)


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
    estimator = estimator_for(settings, plan)
    total = torch.cuda.mem_get_info(settings.device)[1]
    left = int(used * total) - estimator.estimate(replace(plan, kv_cache_bytes=1)).device_total
    least = least_kv_cache_bytes(
        estimator.config.t3, settings.t3_dtype(plan.quantization.t3).itemsize, plan.max_model_len, settings.device.type
    )
    if left < least:
        raise ConfigError(
            f"gpu_memory_utilization={used} of {total / GIB:.2f} GiB leaves {max(left, 0) / GIB:.2f} GiB for the KV "
            f"cache; max_model_len={plan.max_model_len} needs {least / GIB:.2f} GiB: raise the one or lower the other"
        )
    return replace(plan, kv_cache_bytes=left)


def lay_out(
    directory: Path, device: str, tier: str | int | None, quantization: QuantizationConfig | None, **options: Any
) -> tuple[Settings, Plan, str | int | None]:
    """What the keywords of `ChatterboxTTS.from_local` make together, and the tier that "auto" is.

    Raises:
        ConfigError, CheckpointError, DeviceError: see `make_settings`, `wanted_quantization`, `make_plan`.
    """

    def some(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if name in options}

    settings = make_settings(
        directory,
        device,
        **some("dtype", "s3gen_dtype", "cuda_graphs", "deterministic", "multi_step"),
        **some("watermark", "guard", "teacher_forcing", "stream_prompt_seconds"),
    )
    if tier == AUTO:  # asked once: what is free on a card changes
        tier = automatic_tier(settings.device).gb
    methods = some("use_quantization", "quantization_method", "quantize_s3gen", "quantize_voice_encoder")
    plan = make_plan(
        settings,
        tier=tier,
        quantization=wanted_quantization(settings, tier, quantization, methods | some("use_bnb_quantization")),
        **some("max_model_len", "max_batch_size", "kv_cache_bytes", "gpu_memory_utilization"),
    )
    return settings, plan, tier


def expected_bytes(
    directory: Path,
    device: str = "auto",
    tier: str | int | None = None,
    quantization_strategy: str | None = None,
    **options: Any,
) -> int:
    """What a model is expected to take, loaded with keywords of `ChatterboxTTS`: on the card, or else on the host.

    Raises:
        ConfigError, CheckpointError, DeviceError: see `lay_out`.
    """
    config = None
    if quantization_strategy is not None:
        config = strategy_for(quantization_strategy, resolve_device(device)).beside(config_of(directory).quantized)
    settings, plan, _ = lay_out(directory, device, tier, config, **options)
    estimated = estimator_for(settings, plan).estimate(plan)
    return estimated.device_total + (0 if settings.device.type == "cuda" else sum(estimated.host.values()))


def estimator_for(settings: Settings, plan: Plan) -> QuantizationMemoryEstimator:
    """The estimator of a model in the precision that it will run in."""
    return QuantizationMemoryEstimator(
        settings.directory,
        half=settings.t3_dtype(plan.quantization.t3) != torch.float32,
        cuda=settings.device.type == "cuda",
        s3gen_half=settings.flow_dtype != torch.float32,
    )


def check_model_len(config: T3Config, max_model_len: int) -> None:
    """Refuse a model length in which nothing sensible can be said, or that the model has no positions for.

    Raises:
        ConfigError
    """
    backbone = backbone_of(config)
    prompt = backbone.conditioning_rows(config) + backbone.rows_around_text
    least = prompt + _LEAST_TEXT_TOKENS + _LEAST_SPEECH_TOKENS
    if max_model_len < least:
        raise ConfigError(
            f"max_model_len={max_model_len} leaves no room to speak: a voice and a short sentence with "
            f"{_LEAST_SPEECH_TOKENS / 25:.0f} s of speech take {least} positions; for texts of any length give 1280 "
            "or more"
        )
    most = backbone.most_positions(config)
    if max_model_len > most:
        raise ConfigError(f"max_model_len={max_model_len} is more than the model can ever use: {most} at most")
