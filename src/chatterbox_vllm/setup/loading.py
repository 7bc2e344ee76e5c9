"""From a plan to a model in memory: its parts put together, and what to try where that fails."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.caches.primitives import bound_primitive_caches
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cpu.helpers import give_back_helpers
from chatterbox_vllm.cuda.memory import spare_device_memory
from chatterbox_vllm.engine.chunks import QUICK, STEADY
from chatterbox_vllm.engine.engine import Engine
from chatterbox_vllm.engine.listening import SourceReader
from chatterbox_vllm.engine.preparation import Preparation
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.scheduler import Scheduler
from chatterbox_vllm.engine.talker import TalkerStage
from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.families.layout import check_parts
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.config import COMPONENTS, QuantizationConfig
from chatterbox_vllm.quantization.files import scheme_in_force
from chatterbox_vllm.quantization.storage import NF4
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.setup.planning import Settings
from chatterbox_vllm.setup.preflight import cpu_watermarker, preflight
from chatterbox_vllm.setup.support import require_support, support
from chatterbox_vllm.setup.talkers import open_talker
from chatterbox_vllm.setup.tiers import Plan
from chatterbox_vllm.setup.voicing import start_synthesis
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.quantization.methods import check_decoding, method_in_force
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.voice import Voice

logger = logging.getLogger(__name__)

_PREPARING_THREADS = 2


@dataclass(frozen=True)
class Parts:
    """A model in memory, and the plan that it was laid out by."""

    plan: Plan
    engine: Engine[TalkerStage]
    enroller: VoiceEnroller
    voice: Voice | None


def load(settings: Settings, plan: Plan, fallback: bool) -> tuple[Parts, tuple[str, ...]]:
    """The model, and the steps that it took to get there.

    Args:
        fallback: take what cannot be had here from the plan, component by component; where the rest cannot be loaded,
            try `QuantizationConfig.steps_down` in turn.

    Raises:
        ConfigError, CheckpointError, DeviceError: of the last attempt.
    """
    bound_primitive_caches()
    steps: list[str] = []

    def step_down(name: str, config: QuantizationConfig, reason: object) -> Plan:
        logger.warning("stepping down from %s to %s: %s", plan.quantization, name, reason)
        steps.append(name)
        return replace(plan, quantization=config)

    # A quantized file stays what it is: a method that contradicts it is an error, whatever `fallback` says.
    onto_stored = {part: plan.quantization.methods[part] for part in settings.stored.parts}
    contradicting = QuantizationConfig(**onto_stored, double_quant=plan.quantization.double_quant)
    in_force(contradicting, settings.directory, config_of(settings.directory))
    left = plan.quantization.beside(settings.stored)
    if fallback:
        for name, config, reason in left.steps_to_what_can_be_had(partial(_why_not, settings)):
            plan, left = step_down(name, config, reason), config
    weaker = left.steps_down() if fallback else iter(())
    while True:
        try:
            return assemble(settings, plan), tuple(steps)
        except DeviceError as error:
            step = next(weaker, None)
            if step is None:
                raise
            plan = step_down(*step, error)


def _why_not(settings: Settings, component: str, method: str) -> str | None:
    """Why a component that is not quantized on disk cannot be quantized here."""
    try:
        if component == "t3":
            method_in_force(method, None, f"T3's file in {settings.directory}")  # AWQ has to be on disk
            check_decoding(settings.config.t3, method)
    except ConfigError as error:
        return str(error)
    return support(component, method, settings.device, settings.t3_dtype(method)).why_not


def assemble(settings: Settings, plan: Plan) -> Parts:
    """Read the files and start the stages.

    Raises:
        ConfigError, CheckpointError, DeviceError, OutputError
    """
    directory, device, quantization = settings.directory, settings.device, plan.quantization
    if plan.frugal and device.type == "cuda":
        spare_device_memory(device)
    config = config_of(directory)
    require_support(in_force(quantization, directory, config), device, settings.t3_dtype(quantization.t3))
    options = _t3_options(settings, plan)
    family = family_of(config.family, directory)
    # Everything cheap is read and checked before the engine starts.
    tokenizer = family.read_tokenizer(directory)
    files = {part: Weights(directory / getattr(family, part)) for part in COMPONENTS}
    check_parts(config, files)
    preflight(settings, plan)
    s3gen_scheme = scheme_in_force(quantization, "s3gen", config.quantized.s3gen)
    encoder_scheme = scheme_in_force(quantization, "voice_encoder", config.quantized.voice_encoder)
    builtin = directory / family.builtin_voice
    voice = Voice.load(builtin, config) if builtin.exists() else None
    aside = torch.device("cpu") if plan.enrolment == "cpu" else device
    enroller = VoiceEnroller(
        config,
        files["s3gen"],
        files["voice_encoder"],
        device=aside,
        quantization=encoder_scheme,
        keep=plan.enrolment != "released",
    )
    builder = family.read_prompt_builder(config.t3, files["t3"])
    watermarker = _watermarker(aside) if settings.watermark else None
    s3gen = S3Gen.from_weights(
        config.s3gen,
        files["s3gen"],
        device,
        settings.flow_dtype,
        settings.vocoder_dtype,
        cuda_graphs=settings.cuda_graphs,
        quantization=s3gen_scheme,
    )
    talker = open_talker(config.t3, files["t3"], options, device)
    try:
        steps = family.defaults_of(config).diffusion_steps
        voicing = start_synthesis(s3gen, plan, watermarker, device, voice, steps)
    except BaseException:
        talker.close()
        raise
    scheduler = Scheduler(
        config.t3,
        Preparation(
            PromptMaker(config, tokenizer, builder, plan.max_model_len, options.dtype),
            _PREPARING_THREADS,
            SourceReader(config, enroller.hearing),
        ),
        talker,
        voicing,
        # No more than T3 speaks at once: what waits inside vLLM cannot be overtaken. A place that one piece leaves is
        # taken by another before the next step.
        max_admitted=plan.max_batch_size,
        max_waiting=max(16, 4 * plan.s3gen_batch),
        chunk_plan=replace(QUICK if device.type == "cuda" else STEADY, prompt=settings.stream_prompt),
        lookahead=config.s3gen.flow.lookahead,
        ending=family.ending,
        guarded=settings.guard,
    )
    give_back_helpers()  # what speaks is perhaps another thread
    return Parts(plan, Engine(scheduler, talker, voicing), enroller, voice)


def _watermarker(device: torch.device) -> Watermarker:
    return cpu_watermarker() if device.type == "cpu" else Watermarker(device)


def _t3_options(settings: Settings, plan: Plan) -> T3Options:
    return T3Options(
        dtype=settings.t3_dtype(plan.quantization.t3),
        max_model_len=plan.max_model_len,
        max_batch_size=plan.max_batch_size,
        kv_cache_bytes=plan.kv_cache_bytes,
        cuda_graphs=settings.cuda_graphs,
        max_batched_tokens=plan.max_batched_tokens,
        deterministic=settings.deterministic,
        quantization=plan.quantization.t3,
        double_quant=plan.quantization.double_quant,
        graph_sizes=plan.graph_sizes,
        teacher_forcing=settings.teacher_forcing,
        multi_step=settings.t3_multi_step,
        follow_text=settings.guard and bool(settings.config.t3.alignment_heads),
    )


def in_force(wanted: QuantizationConfig, directory: Path, config: ModelConfig) -> QuantizationConfig:
    """The methods that a directory's parts get: as their files are quantized, else as asked for.

    Raises:
        ConfigError: another method is asked for than a file holds, AWQ without a file of it, or the family is unknown.
    """
    family = family_of(config.family, directory)
    files = {part: str(directory / getattr(family, part)) for part in wanted.methods}
    methods = {
        part: method_in_force(method, getattr(config.quantized, part), files[part])
        for part, method in wanted.methods.items()
    }
    check_decoding(config.t3, methods["t3"])
    doubled = {part: how.double_quant for part, how in config.quantized.parts.items() if how.method == NF4.method}
    for part, is_doubled in doubled.items():
        if wanted.methods[part] is not None and is_doubled and not wanted.double_quant:
            raise ConfigError(
                f"{files[part]} is quantized with double quantization already: leave double_quant=False out, or load "
                "the model that it was made from"
            )
    if NF4.method in wanted.beside(config.quantized).methods.values():
        doubled["loaded"] = wanted.double_quant
    return QuantizationConfig(**methods, double_quant=all(doubled.values()))
