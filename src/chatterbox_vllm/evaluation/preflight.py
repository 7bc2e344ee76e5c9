"""What can be seen to be wrong with a model and its options before one is loaded; no device is touched."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatterbox_vllm.checkpoint.config import ModelConfig, QuantizedParts
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.layout import check_parts
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.config import AUTO, COMPONENTS, QuantizationConfig
from chatterbox_vllm.settings import GPU_MEMORY_UTILIZATION, MAX_BATCH_SIZE, MAX_MODEL_LEN, positive, share
from chatterbox_vllm.setup.loading import in_force
from chatterbox_vllm.setup.tiers import tier_named
from chatterbox_vllm.tts import ChatterboxTTS
from chatterbox_vllm.voices.voice import Voice

# What the evaluation sets itself, and what does.
_TAKEN = {
    "model": "--baseline or --candidate",
    "ckpt_dir": "--baseline or --candidate",
    "device": "--device",
    "teacher_forcing": "the evaluation itself",
}
_QUANTIZATION = ("use_quantization", "quantization_method", "quantize_s3gen", "quantize_voice_encoder")


def check_models(directories: tuple[Path, Path], options: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
    """Refuse what the baseline or the candidate would stumble over only once it is loaded.

    Raises:
        ConfigError: an option cannot be used, or the two models cannot be given the same tokens and voices.
        CheckpointError: a directory lacks a file, or holds one that its configuration does not describe.
    """
    for given in options:
        check_options(given)
    configs = [check_directory(where, given) for where, given in zip(directories, options, strict=True)]
    ours, others = map(_shared_sizes, configs)
    for name, size in ours.items():
        if others[name] != size:
            raise ConfigError(
                f"{directories[1]} cannot be compared with {directories[0]}: its {name} is {others[name]}, the "
                f"baseline's {size}; compare models of one family and size"
            )


def _shared_sizes(config: ModelConfig) -> dict[str, Any]:
    """What the baseline's tokens, voices and figures take for granted."""
    return {
        "family": family_of(config.family).name,
        "number of speech tokens": config.t3.speech_vocab_size,
        "speech prompt": config.t3.speech_prompt_tokens,
        "speaker embedding": config.t3.speaker_embedding_size,
        "flow's vocabulary": config.s3gen.flow.vocab_size,
        "number of mel bins": config.s3gen.flow.num_mels,
        "x-vector": config.s3gen.xvector.embedding_size,
    }


def check_directory(directory: Path, options: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a model's directory, once all its files have been found to be what it says.

    Raises:
        ConfigError: the configuration cannot be read, or the options ask for another quantization than a file has.
        CheckpointError: a file is missing, damaged or of another layout.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory of model files; name another model")
    config = config_of(directory)
    if config.t3.blocks is not None:
        raise ConfigError(
            f"{directory}: an evaluation forces tokens on T3 to compare what it thinks, and a model that fills in "
            "blocks takes none; name another model, or listen to this one with `chatterbox-vllm say`"
        )
    family = family_of(config.family, directory)
    if not options.get("fallback"):  # which may give up what cannot be had
        in_force(_quantization(options, config.quantized) or QuantizationConfig(), directory, config)
    family.read_tokenizer(directory)
    check_parts(config, {part: Weights(directory / getattr(family, part)) for part in COMPONENTS})
    voice = directory / family.builtin_voice
    if voice.exists():
        Voice.load(voice, config)
    return config


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse keywords that `ChatterboxTTS.from_pretrained` does not take, or not from here, and values of no use to it.

    Raises:
        ConfigError: naming the option and what to give.
    """
    hints = _keywords()
    for name, value in options.items():
        if name in _TAKEN:
            raise ConfigError(f"the model option {name!r} is set by {_TAKEN[name]}; leave it out of the model options")
        if name == "quantization":
            raise ConfigError(
                f"the model option 'quantization' takes no words such as {value!r}; name {', '.join(_QUANTIZATION)}"
            )
        if name not in hints:
            raise ConfigError(f"the model option {name!r} is not understood; the options are {', '.join(hints)}")
        if not _is_of(hints[name], value):
            raise ConfigError(f"the model option {name}={value!r} must be {_described(hints[name])}")
    _quantization(options, QuantizedParts())
    for setting, parse in ((MAX_MODEL_LEN, positive), (MAX_BATCH_SIZE, positive), (GPU_MEMORY_UTILIZATION, share)):
        setting.resolve(options.get(setting.keyword), parse, None)


def _quantization(options: Mapping[str, Any], stored: QuantizedParts) -> QuantizationConfig | None:
    names, tier = (*_QUANTIZATION, "use_bnb_quantization"), options.get("tier")
    base = None
    if tier is not None:  # what "auto" quantizes only the card can tell
        base = QuantizationConfig() if tier == AUTO else tier_named(tier).plan.quantization.beside(stored)
    given = {name: options[name] for name in names if name in options}
    return QuantizationConfig.from_options(**given, base=base, stored=stored)


def _keywords() -> dict[str, Any]:
    """The keywords of `from_pretrained` that words can give, with their types."""
    hints = typing.get_type_hints(ChatterboxTTS.from_local)
    return {name: hint for name, hint in hints.items() if name not in (*_TAKEN, "quantization", "return")}


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union, the values of a literal, or the type itself."""
    whole = isinstance(hint, types.UnionType) or typing.get_origin(hint) in (typing.Union, typing.Literal)
    return typing.get_args(hint) if whole else (hint,)


def _is_of(hint: Any, value: Any) -> bool:
    kinds = _choices(hint)
    # A whole number serves where a fraction may stand.
    return (
        value in kinds
        or type(value) in kinds
        or (value is None and types.NoneType in kinds)
        or (type(value) is int and float in kinds)
    )


def _described(hint: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "none"}
    return " or ".join(words.get(choice, choice) for choice in _choices(hint))
