"""Keys and shapes of every tensor that this package reads from a checkpoint's files, from the modules themselves."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from chatterbox_vllm.checkpoint.config import ModelConfig, S3GenConfig, VoiceEncoderConfig
from chatterbox_vllm.checkpoint.files import Weights, published_shapes
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.quantized_files import published_keys_replaced, quantized_file_layout
from chatterbox_vllm.quantization.files import check_contents, check_part
from chatterbox_vllm.quantization.storage import scheme_of
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.quantization.file import quantized_t3_layout, unquantized_keys
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder
from chatterbox_vllm.voices.nets.xvector import CAMPPlus

Shapes = dict[str, tuple[int, ...]]
# Only a flow with `FlowConfig.meanflow` has it.
_OF_FEW_STEPS = "flow.decoder.estimator.time_embed_mixer.weight"
# What a file may lack, as it follows from the dimensions (see `load_module`).
_COMPUTED = frozenset(f"tokenizer.{name}" for name in SpeechTokenizer.computed)


@contextmanager
def _on_paper(part: str) -> Iterator[None]:
    """Make a part's networks without memory for their weights.

    Raises:
        ConfigError: there are no networks of the sizes that its configuration names.
    """
    try:
        with torch.device("meta"):
            yield
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"config.json: {part}: no network has these sizes ({error}); mend it, or make the directory again"
        ) from error


@functools.cache  # what a plan's estimate needs, too; making the modules takes 50 ms
def s3gen_shapes(config: S3GenConfig) -> Shapes:
    """The S3Gen file: enrolment nets, flow and vocoder.

    Raises:
        ConfigError: there are no networks of these sizes.
    """
    with _on_paper("s3gen"):
        model = S3Gen(config)
        parts = {
            "tokenizer.": SpeechTokenizer(config.tokenizer),
            "speaker_encoder.": CAMPPlus(config.xvector),
            **model.published_parts(),
        }
    return {key: shape for prefix, part in parts.items() for key, shape in published_shapes(part, prefix).items()}


def voice_encoder_shapes(config: VoiceEncoderConfig) -> Shapes:
    """The voice encoder's file.

    Raises:
        ConfigError: there is no network of these sizes.
    """
    with _on_paper("voice_encoder"):
        return published_shapes(VoiceEncoder(config), prefix="")


def checkpoint_shapes(config: ModelConfig) -> dict[str, Shapes]:
    """By the part's name in `Family`: "t3", "s3gen", "voice_encoder".

    Raises:
        ConfigError: there are no networks of these sizes.
    """
    return {
        "t3": backbone_of(config.t3).published_shapes(config.t3),
        "s3gen": s3gen_shapes(config.s3gen),
        "voice_encoder": voice_encoder_shapes(config.voice_encoder),
    }


def check_parts(config: ModelConfig, files: Mapping[str, Weights]) -> None:
    """Refuse a checkpoint of which any part's file is not what `config` describes.

    Args:
        files: by the part's name in `Family`: "t3", "s3gen" and "voice_encoder".

    Raises:
        CheckpointError: naming the file and the tensor or the mismatch.
        ConfigError: there are no networks of the sizes that `config` names.
    """
    check_t3(config, files["t3"])
    for part in ("s3gen", "voice_encoder"):
        check_module_file(config, part, files[part])


def check_t3(config: ModelConfig, weights: Weights) -> None:
    """Refuse a T3 file that is not what `config` describes; reads the header of a plain one, a quantized one whole.

    Raises:
        CheckpointError: naming the file and the tensor or the mismatch.
    """
    part, published = config.quantized.t3, backbone_of(config.t3).published_shapes(config.t3)
    weights.check_layers(published)
    if part is None:
        check_part(weights, None, {})
        weights.check(published)
    else:
        check_part(weights, part, quantized_t3_layout(config.t3, part))
        weights.check({key: published[key] for key in unquantized_keys(config.t3)})
        check_contents(weights, part)


def check_module_file(config: ModelConfig, part: str, weights: Weights) -> None:
    """`check_t3` for the file of S3Gen ("s3gen") or the voice encoder ("voice_encoder").

    Raises:
        CheckpointError: naming the file and the tensor or the mismatch.
    """
    published = s3gen_shapes(config.s3gen) if part == "s3gen" else voice_encoder_shapes(config.voice_encoder)
    published = {key: shape for key, shape in published.items() if key not in _COMPUTED or key in weights.keys}
    if part == "s3gen" and _OF_FEW_STEPS in weights.keys - published.keys():  # all else would fit, and speak nonsense
        raise CheckpointError(
            f"{weights.path}: its flow is one of few steps (it holds {_OF_FEW_STEPS!r}), and this model has another; "
            "is this the right file for this model?"
        )
    weights.check_layers(published)
    stored = config.quantized.s3gen if part == "s3gen" else config.quantized.voice_encoder
    if stored is None:
        check_part(weights, None, {})
        weights.check(published)
        return
    dimensions = config.s3gen if part == "s3gen" else config.voice_encoder
    scheme = scheme_of(stored.method, stored.double_quant)
    check_part(weights, stored, quantized_file_layout(dimensions, scheme))
    replaced = published_keys_replaced(dimensions, scheme)
    weights.check({key: shape for key, shape in published.items() if key not in replaced})
    check_contents(weights, stored)
