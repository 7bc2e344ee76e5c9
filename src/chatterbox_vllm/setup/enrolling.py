"""A voice without an engine: only the nets of enrolment are loaded."""

from __future__ import annotations

from pathlib import Path

from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.files import scheme_in_force
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.models import resolve_model
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.files import FileVoices
from chatterbox_vllm.voices.voice import Voice


def voice_of(
    path: Path,
    model: str | None = None,
    device: str = "auto",
    revision: str | None = None,
    norm_loudness: bool | None = None,
) -> Voice:
    """The voice of a clip, enrolled for a model; or of a saved voice's file, if the model can use it.

    Args:
        model, device, revision: as for `ChatterboxTTS.from_pretrained`.
        norm_loudness: as for `ChatterboxTTS.prepare_conditionals`.

    Raises:
        AudioError: the clip cannot be read or used.
        ConfigError: `norm_loudness` asks for what the model does not do, or comes with a saved voice.
        ConfigError, CheckpointError, DeviceError: of the model, the saved voice, or the device.
    """
    directory = resolve_model(model, revision)
    config = config_of(directory)
    family = family_of(config.family, directory)
    enroller = VoiceEnroller(
        config,
        Weights(directory / family.s3gen),
        Weights(directory / family.voice_encoder),
        device=resolve_device(device),
        quantization=scheme_in_force(QuantizationConfig(), "voice_encoder", config.quantized.voice_encoder),
    )
    return FileVoices(enroller).voice(path, norm_loudness)
