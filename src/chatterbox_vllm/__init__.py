"""Chatterbox text-to-speech on vLLM: zero-shot voices, batched, quantized, from 4 GB cards to data centres."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.errors import (
    AbortedError,
    AudioError,
    BatchError,
    ChatterboxError,
    CheckpointError,
    ConfigError,
    DeadlineError,
    DeviceError,
    GenerationError,
    ModelUnavailableError,
    OutputError,
    OverloadedError,
    TextTooLongError,
)

if TYPE_CHECKING:
    from chatterbox_vllm.engine.budgets import Limits
    from chatterbox_vllm.engine.conversion import ConversionRequest
    from chatterbox_vllm.engine.request import AudioChunk, SpeechParameters, SpeechRequest, SpeechResult
    from chatterbox_vllm.multilingual import ChatterboxMultilingualTTS
    from chatterbox_vllm.quantization.config import QuantizationConfig
    from chatterbox_vllm.serving.async_engine import AsyncChatterbox
    from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
    from chatterbox_vllm.setup.support import check_quantization_support
    from chatterbox_vllm.tts import ChatterboxTTS
    from chatterbox_vllm.tts_turbo import ChatterboxTurboTTS
    from chatterbox_vllm.vc import ChatterboxVC
    from chatterbox_vllm.voices.voice import Voice

__version__ = "0.1.0"

__all__ = [
    "AbortedError",
    "AsyncChatterbox",
    "AudioChunk",
    "AudioError",
    "BatchError",
    "ChatterboxError",
    "ChatterboxMultilingualTTS",
    "ChatterboxTTS",
    "ChatterboxTurboTTS",
    "ChatterboxVC",
    "CheckpointError",
    "ConfigError",
    "ConversionRequest",
    "DeadlineError",
    "DeviceError",
    "GenerationError",
    "Limits",
    "ModelUnavailableError",
    "OutputError",
    "OverloadedError",
    "QuantizationConfig",
    "QuantizationMemoryEstimator",
    "SpeechParameters",
    "SpeechRequest",
    "SpeechResult",
    "TextTooLongError",
    "Voice",
    "__version__",
    "check_quantization_support",
]

# Imported when first asked for: they bring PyTorch, which takes seconds that `--help` and errors need not cost.
_LAZY = {
    "AsyncChatterbox": "chatterbox_vllm.serving.async_engine",
    "AudioChunk": "chatterbox_vllm.engine.request",
    "ChatterboxMultilingualTTS": "chatterbox_vllm.multilingual",
    "ChatterboxTTS": "chatterbox_vllm.tts",
    "ChatterboxTurboTTS": "chatterbox_vllm.tts_turbo",
    "ChatterboxVC": "chatterbox_vllm.vc",
    "ConversionRequest": "chatterbox_vllm.engine.conversion",
    "Limits": "chatterbox_vllm.engine.budgets",
    "QuantizationConfig": "chatterbox_vllm.quantization.config",
    "QuantizationMemoryEstimator": "chatterbox_vllm.setup.estimate",
    "SpeechParameters": "chatterbox_vllm.engine.request",
    "SpeechRequest": "chatterbox_vllm.engine.request",
    "SpeechResult": "chatterbox_vllm.engine.request",
    "Voice": "chatterbox_vllm.voices.voice",
    "check_quantization_support": "chatterbox_vllm.setup.support",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
