"""What the options that several commands share mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatterbox_vllm.cli import process
from chatterbox_vllm.cli.arguments import Keywords
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import SPEECH, TEXT, VOICE

if TYPE_CHECKING:
    from chatterbox_vllm.checkpoint.config import ModelConfig
    from chatterbox_vllm.engine.request import SpeechParameters
    from chatterbox_vllm.tts import ChatterboxTTS

VOICE_HELP = "a clip of the voice, a saved voice's file, or the name of a voice that is saved or comes with the model"
VoiceOption = Annotated[
    str | None, typer.Option(metavar="VOICE", help=VOICE_HELP, show_default="the model's own voice")
]
VoicesOption = Annotated[
    list[str] | None, typer.Option("--voice", metavar="VOICE…", help=VOICE_HELP, show_default="the model's own voice")
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N")]
FileOption = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="read the text from a file (UTF-8)", show_default=False),
]
JsonOption = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="write all results there as JSON; - is standard output", show_default=False
    ),
]
_OF_REQUESTS = {setting.keyword for setting in (*SPEECH, *TEXT, *VOICE)}


def speech_parameters(given: Keywords) -> SpeechParameters:
    """The parameters of speech among the keywords that were given, checked.

    Raises:
        ConfigError: a value out of range.
    """
    from chatterbox_vllm.engine.request import SpeechParameters

    names = {field.name for field in fields(SpeechParameters)}
    return SpeechParameters(**{name: value for name, value in given.items() if name in names})


def load(given: Keywords, **defaults: Any) -> ChatterboxTTS:
    """The model that the keywords ask for; `defaults` are keywords where none was given."""
    from chatterbox_vllm.tts import ChatterboxTTS

    keywords = defaults | {name: value for name, value in given.items() if name not in _OF_REQUESTS}
    if "quantization_strategy" not in keywords:
        tts = ChatterboxTTS.from_pretrained(**keywords)
    else:
        _check_strategy_alone(keywords)
        tts = ChatterboxTTS.from_pretrained_quantized(**keywords)
    process.started()
    return tts


@contextmanager
def loaded(given: Keywords, **defaults: Any) -> Iterator[ChatterboxTTS]:
    """`load` for as long as the command works with the model.

    Where the process ends with the command, an engine that has done its work is not taken apart, which takes a second
    or two: what it holds goes with the process, and exit functions remove its files.
    """
    tts = load(given, **defaults)
    try:
        yield tts
    except BaseException:
        tts.shutdown()
        raise
    if process.is_own():
        tts.t3_stage.end_with_process()
    else:
        tts.shutdown()


def _check_strategy_alone(keywords: Keywords) -> None:
    others = [name for name in keywords if name.startswith(("use_quantization", "quantization_method", "quantize_"))]
    if others:
        raise ConfigError(f"quantization_strategy says every part's method: leave {', '.join(others)} out")


def with_model(given: Keywords) -> Keywords:
    """The keywords, with a model where none was named: see `default_model`."""
    if "model" in given or "revision" in given:  # a revision is one of the default family's
        return given
    from chatterbox_vllm.setup.models import default_model

    return given | {"model": default_model()}


def model_config(given: Keywords) -> ModelConfig:
    """The configuration of the model that the keywords name, which is downloaded for it.

    Raises:
        ConfigError, CheckpointError: there is no such model.
    """
    from chatterbox_vllm.families.registry import config_of
    from chatterbox_vllm.setup.models import resolve_model

    return config_of(resolve_model(given.get("model"), given.get("revision")))


def check_voice(voice: str | None, given: Keywords, converting: bool = False) -> Path | None:
    """The file of a voice that was named, found to be one that the model can use, before that is loaded.

    Args:
        given: what is asked of a clip among them.
        converting: whether S3Gen alone is to use it; then no more of the model is downloaded.

    Raises:
        ConfigError: there is neither such a file nor such a name, or no clip for what is asked of one.
        AudioError: the clip cannot serve.
        CheckpointError: the saved voice is damaged, or of another model; or there is no such model.
    """
    norm_loudness = given.get("norm_loudness")
    if norm_loudness is not None:
        model_config(given).enrolment.loudness_of(norm_loudness)
    if voice is None:
        return None
    from chatterbox_vllm.families.registry import config_of
    from chatterbox_vllm.families.voices import voices_of
    from chatterbox_vllm.setup.models import resolve_converter, resolve_model
    from chatterbox_vllm.voices.files import check_voice_file
    from chatterbox_vllm.voices.hearing import read_target
    from chatterbox_vllm.voices.library import VoiceLibrary
    from chatterbox_vllm.voices.naming import is_voice_name
    from chatterbox_vllm.voices.saved import is_saved_voice

    library = VoiceLibrary()
    own = {}

    def directory() -> Path:
        resolve = resolve_converter if converting else resolve_model
        return resolve(given.get("model"), given.get("revision"))

    if library.look_up(voice) is None and is_voice_name(voice):
        own = voices_of(directory())
    path = library.find(voice, own)
    # A clip can be told to be bad without a model.
    is_clip = not (os.access(path, os.R_OK) and is_saved_voice(path))
    if is_clip:
        check_voice_file(path)
        if converting:
            return path
    config = config_of(directory())
    # A name may have a voice for each kind of model, or a clip that one can be made of. A conversion takes any kind's.
    path = library.find(voice, own, config.voice_kind, or_clip=not converting)
    if converting:
        read_target(path, config)
    elif not is_clip or config.enrolment.least_seconds:
        check_voice_file(path, config, norm_loudness)
    return path
