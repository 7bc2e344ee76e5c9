"""The one table of all settings: keyword, command-line option, environment variable, default, meaning.

A setting is decided by its keyword (or the option, which stands for it), else by its environment variable, else by its
default. `docs/settings.md` is written from this table (tests/test_settings.py).
"""

from __future__ import annotations

from chatterbox_vllm.settings.environment import (
    CACHE_DIRECTORY,
    ENVIRONMENT,
    HEBREW_MODEL,
    VOICES_DIRECTORY,
)
from chatterbox_vllm.settings.model import (
    ENGINE,
    GPU_MEMORY_UTILIZATION,
    MAX_BATCH_SIZE,
    MAX_MODEL_LEN,
    MODEL,
    MODEL_NAME,
    QUANTIZATION,
    QUANTIZATION_METHOD,
    QUANTIZE_S3GEN,
    QUANTIZE_VOICE_ENCODER,
    STREAM,
    STREAM_PROMPT_SECONDS,
    USE_QUANTIZATION,
)
from chatterbox_vllm.settings.server import (
    QUANTIZATION_BITS,
    QUANTIZATION_ENABLED,
    SERVER,
)
from chatterbox_vllm.settings.setting import (
    Setting,
    above_zero,
    flag,
    positive,
    share,
)
from chatterbox_vllm.settings.speech import (
    LANGUAGE,
    NORM_LOUDNESS,
    SPEECH,
    TEXT,
    VOICE,
)

__all__ = [
    "BY_KEYWORD",
    "CACHE_DIRECTORY",
    "ENGINE",
    "ENVIRONMENT",
    "GPU_MEMORY_UTILIZATION",
    "GROUPS",
    "HEBREW_MODEL",
    "LANGUAGE",
    "MAX_BATCH_SIZE",
    "MAX_MODEL_LEN",
    "MODEL",
    "MODEL_NAME",
    "NORM_LOUDNESS",
    "QUANTIZATION",
    "QUANTIZATION_BITS",
    "QUANTIZATION_ENABLED",
    "QUANTIZATION_METHOD",
    "QUANTIZE_S3GEN",
    "QUANTIZE_VOICE_ENCODER",
    "SERVER",
    "SPEECH",
    "STREAM",
    "STREAM_PROMPT_SECONDS",
    "Setting",
    "TEXT",
    "USE_QUANTIZATION",
    "VARIABLES",
    "VOICE",
    "VOICES_DIRECTORY",
    "above_zero",
    "flag",
    "positive",
    "share",
]

GROUPS: dict[str, tuple[Setting, ...]] = {
    "Which model, and where": MODEL,
    "How it runs": ENGINE,
    "How it streams": STREAM,
    "Quantization": QUANTIZATION,
    "How it speaks": SPEECH,
    "How it hears a voice": VOICE,
    "How it reads a text": TEXT,
    "How it serves": SERVER,
    "Places and installation": ENVIRONMENT,
}
BY_KEYWORD: dict[str, Setting] = {s.keyword: s for group in GROUPS.values() for s in group if s.keyword}
VARIABLES: dict[str, Setting] = {s.variable: s for group in GROUPS.values() for s in group if s.variable}
