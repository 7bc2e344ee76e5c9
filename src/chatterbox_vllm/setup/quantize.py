"""From a published model to a directory of it quantized: what `chatterbox-vllm quantize` does."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from chatterbox_vllm.checkpoint.config import STORED_METHODS, ModelConfig, QuantizedPart
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.layout import check_parts
from chatterbox_vllm.families.quantized_files import quantized_file_tensors
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.files import Progress, scheme_in_force
from chatterbox_vllm.quantization.storage import NF4, Tensors, require_bitsandbytes, scheme_of
from chatterbox_vllm.setup.quantized_directory import check_output, write_checkpoint
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.quantization.awq import Utterance, quantize_t3_awq
from chatterbox_vllm.t3.quantization.file import quantize_t3_bnb, quantized_t3_layout
from chatterbox_vllm.t3.quantization.methods import automatic_dtype
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.files import FileVoices
from chatterbox_vllm.voices.voice import Voice

logger = logging.getLogger(__name__)

STORED_T3_METHODS = STORED_METHODS["t3"]

# What AWQ is calibrated on where no texts are given: statements, questions, numbers, names, short and long.
CALIBRATION_TEXTS = (
    "Good morning, and thank you for calling.",
    "The parcel left the warehouse at a quarter past nine and should reach you by Thursday evening.",
    "Why would anybody paint a lighthouse green?",
    "In 1969, some six hundred million people watched two men walk on the moon.",
    "No!",
    "She laughed, shut the old piano, and said that she would rather have a sandwich than another waltz.",
    "Mix the flour with two eggs, a pinch of salt and half a litre of milk; leave it for twenty minutes.",
    "Doctor Ramirez will see you now, Mister O'Brien.",
    "I honestly don't know whether it's the engine, the gearbox, or just the weather.",
    "Please hold the line.",
    "Far out in the bay the fishing boats had lit their lamps, one after another, until the water looked like a town.",
    "Version two point five fixes the login problem, doesn't it?",
)
_CALIBRATION_TOKENS = 120  # about five seconds of speech for each text
_CALIBRATION_LENGTH = 1024


def quantize_model(
    directory: Path,
    output: Path,
    quantization: QuantizationConfig,
    *,
    texts: Sequence[str] = CALIBRATION_TEXTS,
    clips: Sequence[Path] = (),
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelConfig:
    """Write the model in `directory` with some parts quantized to `output`, which appears whole or not at all.

    Args:
        quantization: the parts and their methods, none of them quantized yet; T3's is one of `STORED_T3_METHODS`.
        texts: what AWQ's calibration speaks.
        clips: reference clips to speak them with, in turn; the model's own voice without any.
        device: where AWQ speaks and searches: "auto", "cpu", "cuda" or "cuda:N". The others need none.
        progress: called after each quantized layer with its part's name, the part's layers done, and of how many.

    Returns:
        The new directory's configuration.

    Raises:
        ConfigError, CheckpointError, AudioError, OutputError, DeviceError
    """
    parts = _parts(quantization)
    config = config_of(directory)
    for part in parts:
        if (stored := getattr(config.quantized, part)) is not None:
            raise ConfigError(
                f"{directory}: {part} is quantized already, in {stored.method}; name the parts that are not, one by "
                "one, or give the model that it was made from"
            )
    check_output(output)
    # Whatever can be refused is refused before any work is done; what is only taken along is refused as well.
    family = family_of(config.family, directory)
    files = {part: Weights(directory / getattr(family, part)) for part in quantization.methods}
    check_parts(config, files)
    family.read_tokenizer(directory)
    if "t3" in parts:
        quantized_t3_layout(config.t3, parts["t3"])
    made: dict[str, tuple[QuantizedPart, Tensors]] = {}
    for part, how in parts.items():
        report = None if progress is None else functools.partial(progress, part)
        if how.method == "awq":
            tensors = _calibrated(directory, config, files[part], texts, clips, device, report)
        elif part == "t3":
            tensors = quantize_t3_bnb(config.t3, files[part], how, report)
        else:
            scheme = scheme_of(how.method, how.double_quant)
            tensors = quantized_file_tensors(getattr(config, part), files[part], scheme, report)
        made[part] = how, tensors
    return write_checkpoint(directory, output, config, made)


def _parts(quantization: QuantizationConfig) -> dict[str, QuantizedPart]:
    """What is to be written, without fingerprints."""
    if not quantization.active:
        raise ConfigError("there is nothing to quantize: give a method for t3, s3gen or voice_encoder")
    if quantization.t3 not in (None, *STORED_T3_METHODS):
        known = ", ".join(map(repr, STORED_T3_METHODS))
        raise ConfigError(f"T3 can be written in {known}, not in {quantization.t3!r}: ask for that while loading")
    if NF4.method in quantization.methods.values():
        require_bitsandbytes()
    return {
        part: QuantizedPart(method, double_quant=quantization.double_quant and method == NF4.method)
        for part, method in quantization.methods.items()
        if method is not None
    }


def _calibrated(
    directory: Path,
    config: ModelConfig,
    weights: Weights,
    texts: Sequence[str],
    clips: Sequence[Path],
    device: str,
    progress: Progress | None,
) -> Tensors:
    from chatterbox_vllm.setup.device import resolve_device

    where = resolve_device(device)
    voices = calibration_voices(directory, config, clips, where)
    utterances = calibration_utterances(directory, config, weights, texts, voices, where)
    logger.info("calibrating on %d utterances", len(utterances))
    return quantize_t3_awq(config.t3, weights, utterances, where, progress)


def calibration_voices(
    directory: Path, config: ModelConfig, clips: Sequence[Path], device: torch.device
) -> list[Voice]:
    """The voices of clips and saved voices, or the model's own.

    Raises:
        ConfigError: there are no clips and the model has no voice.
        AudioError: a clip cannot be used.
        CheckpointError: a saved voice cannot be used.
    """
    family = family_of(config.family)
    if not clips:
        builtin = directory / family.builtin_voice
        if not builtin.exists():
            raise ConfigError(f"{directory} has no built-in voice to calibrate with: give a reference clip")
        return [Voice.load(builtin, config)]
    nets = Weights(directory / family.s3gen), Weights(directory / family.voice_encoder)
    scheme = scheme_in_force(QuantizationConfig(), "voice_encoder", config.quantized.voice_encoder)
    enroller = VoiceEnroller(config, *nets, device=device, quantization=scheme)
    files = FileVoices(enroller)
    voices = [files.voice(clip) for clip in clips]
    enroller.release()
    return voices


def calibration_utterances(
    directory: Path,
    config: ModelConfig,
    weights: Weights,
    texts: Sequence[str],
    voices: Sequence[Voice],
    device: torch.device,
) -> list[Utterance]:
    """Prompts of texts and voices, in turn, with the speech tokens that the unquantized T3 draws for them.

    Raises:
        ConfigError: an empty or overlong text, or none.
    """
    from chatterbox_vllm.t3.vllm.stage import T3Options, T3Stage

    if not texts:
        raise ConfigError("there are no texts to calibrate on; give at least one")
    length = min(_CALIBRATION_LENGTH, backbone_of(config.t3).most_positions(config.t3))
    family = family_of(config.family)
    tokenizer = family.read_tokenizer(directory)
    maker = PromptMaker(config, tokenizer, family.read_prompt_builder(config.t3, weights), length)
    prompts = []
    for i, (text, voice) in enumerate(zip(texts, itertools.cycle(voices), strict=False)):
        parameters = SpeechParameters(max_tokens=_CALIBRATION_TOKENS, seed=i)
        language = family.language_of_english if texts is CALIBRATION_TEXTS else family.language_of(text)
        segments = maker.segments(SpeechRequest(text, voice, parameters, language=language))
        prompts += [maker.prompt_of(segment.text, voice, parameters, language) for segment in segments]
    options = T3Options(
        dtype=automatic_dtype(None, device),
        # No longer than these need, which keeps the KV cache small.
        max_model_len=max(len(prompt) for prompt, _ in prompts) + _CALIBRATION_TOKENS,
        max_batch_size=min(len(prompts), 8),
        cuda_graphs=False,
    )
    talker = T3Stage(config.t3, weights, options, device)
    try:
        for i, (prompt, values) in enumerate(prompts):
            talker.add(str(i), prompt, values.sampling, seed=i)
        spoken = {}
        while talker.unfinished:
            spoken.update({int(output.request_id): output.token_ids for output in talker.step()})
    finally:
        talker.close()
    # The end of speech is drawn from, but never fed back.
    stop = config.t3.stop_speech_token
    return [
        Utterance(prompt, tuple(token for token in spoken[i] if token != stop)) for i, (prompt, _) in enumerate(prompts)
    ]
