"""What a batch's files depend on: the same, and a run goes on; anything else, and it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm.batch.reading import Reading
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.fingerprint import model_identity
from chatterbox_vllm.setup.provenance import versions

# Another release of these may draw or round otherwise.
_PACKAGES = ("chatterbox-vllm", "torch", "vllm", "bitsandbytes")
# Of `ChatterboxTTS.settings`: what makes the audio what it is. Batch sizes and memory do not, up to rounding.
_ENGINE = (
    "quantization",
    "T3 dtype",
    "flow dtype",
    "vocoder dtype",
    "S3Gen kernels",
    "deterministic",
    "watermark",
    "guard",
)


def what_files_depend_on(
    digest: str,
    directory: Path,
    voice: Path | None,
    parameters: SpeechParameters,
    audio_format: str,
    device: torch.device,
    reading: Reading | None = None,
    norm_loudness: bool | None = None,
) -> dict[str, Any]:
    """Everything that is known before the model loads. Files of voices that rows name are not looked at.

    Args:
        digest: of the input.
        directory: the model's; only what it holds counts, not where it lies.
        voice: reference clip of rows that name none.
        reading: None is the usual way.
        norm_loudness: of clips, where a row does not say.

    Raises:
        ConfigError, CheckpointError: a file cannot be read.
    """
    found = versions()
    return {
        "input": digest,
        "model": model_identity(directory),
        "voice": None if voice is None else _digest(voice),
        "norm_loudness": norm_loudness,
        "parameters": {key: value for key, value in asdict(parameters).items() if key != "seed"},
        "seed": parameters.seed,
        "audio_format": audio_format,
        "reading": asdict(reading or Reading()),
        "device": device.type,
        "versions": {name: found[name] for name in _PACKAGES},
    }


def engine_identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What only the loaded model tells: how it computes, "auto" resolved. `settings` are `ChatterboxTTS.settings`."""
    return {name: settings[name] for name in _ENGINE}


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what differs between two of these; what only one of them has differs, too."""
    return [
        _difference(key, earlier.get(key), now.get(key))
        for key in {**earlier, **now}
        if earlier.get(key) != now.get(key)
    ]


def _difference(key: str, earlier: Any, now: Any) -> str:
    if isinstance(earlier, dict) and isinstance(now, dict):
        return "; ".join(differences(earlier, now))
    if key in ("input", "voice", "fingerprint"):  # these are hashes
        what = "model" if key == "fingerprint" else key
        return f"another {what}" if earlier and now else f"{'a' if earlier else 'no'} {what}"
    return f"{key} {earlier!r}, now {now!r}"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
