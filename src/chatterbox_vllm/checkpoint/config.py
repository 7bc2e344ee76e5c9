"""Dimensions of the models, as data.

The defaults are the published sizes of the English Chatterbox. A checkpoint of another size says so in a `config.json`
beside its files (see `ModelConfig.from_directory`); the code is the same for both.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

from chatterbox_vllm.errors import ConfigError

CONFIG_FILE = "config.json"
CONFIG_FORMAT = "chatterbox"


@dataclass(frozen=True)
class T3Config:
    """T3, the language model from text tokens to speech tokens (Llama backbone)."""

    hidden_size: int = 1024
    num_layers: int = 30
    num_heads: int = 16
    head_dim: int = 64
    intermediate_size: int = 4096
    rms_norm_eps: float = 1e-5

    rope_theta: float = 500_000.0
    rope_factor: float = 8.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_max_position: int = 8192

    text_vocab_size: int = 704
    speech_vocab_size: int = 8194
    text_positions: int = 2050
    speech_positions: int = 4100
    start_text_token: int = 255
    stop_text_token: int = 0
    start_speech_token: int = 6561
    stop_speech_token: int = 6562

    speaker_embedding_size: int = 256
    speech_prompt_tokens: int = 150
    perceiver_queries: int = 32
    perceiver_heads: int = 4
    # Classifier-free guidance computes two streams of every sequence; a model without it has one.
    guidance_streams: int = 2

    @property
    def conditioning_length(self) -> int:
        """Rows that conditioning takes at the head of every prompt: speaker, perceiver queries, emotion."""
        return 1 + self.perceiver_queries + 1


@dataclass(frozen=True)
class VoiceEncoderConfig:
    """The LSTM speaker encoder whose embedding conditions T3."""

    num_mels: int = 40
    hidden_size: int = 256
    num_layers: int = 3
    embedding_size: int = 256


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """The S3 tokenizer (v2, 25 Hz): reference audio at 16 kHz to speech tokens."""

    num_mels: int = 128
    hidden_size: int = 1280
    num_heads: int = 20
    num_layers: int = 6
    memory_kernel: int = 31
    code_size: int = 8


@dataclass(frozen=True)
class XVectorConfig:
    """CAMPPlus, the x-vector net whose embedding conditions the flow."""

    num_mels: int = 80
    head_channels: int = 32
    init_channels: int = 128
    growth_rate: int = 32
    bottleneck_factor: int = 4
    block_layers: tuple[int, ...] = (12, 24, 16)
    block_dilations: tuple[int, ...] = (1, 2, 2)
    embedding_size: int = 192


@dataclass(frozen=True)
class FlowConfig:
    """Speech tokens to mel: conformer encoder, then a conditional flow-matching decoder."""

    vocab_size: int = 6561
    num_mels: int = 80
    hidden_size: int = 512
    encoder_heads: int = 8
    encoder_ff_size: int = 2048
    encoder_blocks: int = 6
    upsampled_blocks: int = 4
    lookahead: int = 3
    estimator_channels: int = 256
    estimator_heads: int = 8
    estimator_head_dim: int = 64
    estimator_transformer_blocks: int = 4
    estimator_mid_stages: int = 12
    cfg_rate: float = 0.7
    meanflow: bool = False


@dataclass(frozen=True)
class HiFTConfig:
    """HiFT vocoder: mel at 50 frames/s to a 24 kHz waveform, with its F0 predictor and harmonic source."""

    num_mels: int = 80
    base_channels: int = 512
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernels: tuple[int, ...] = (16, 11, 7)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[int, ...] = (1, 3, 5)
    source_kernels: tuple[int, ...] = (7, 7, 11)
    fft_size: int = 16
    hop_size: int = 4
    harmonics: int = 8
    f0_channels: int = 512
    f0_layers: int = 5
    source_amplitude: float = 0.1
    source_noise: float = 0.003
    voiced_threshold: float = 10.0
    audio_limit: float = 0.99

    @property
    def samples_per_frame(self) -> int:
        """Audio samples for one mel frame: 480 at the published size."""
        total = self.hop_size
        for rate in self.upsample_rates:
            total *= rate
        return total


@dataclass(frozen=True)
class S3GenConfig:
    """Everything in `s3gen.safetensors`: enrolment nets, flow and vocoder."""

    tokenizer: SpeechTokenizerConfig = field(default_factory=SpeechTokenizerConfig)
    xvector: XVectorConfig = field(default_factory=XVectorConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)


@dataclass(frozen=True)
class QuantizedPart:
    """How one part's file of a checkpoint is quantized; the file's own header says the same.

    Attributes:
        method: "bnb-4bit", "bnb-8bit" or "awq".
        double_quant: NF4's scales are quantized too.
        fingerprint: SHA-256 over the file's tensors, written by whoever made it and checked at every load.
    """

    method: str
    double_quant: bool = False
    fingerprint: str = ""


# What the files of each part can be quantized in.
STORED_METHODS: dict[str, tuple[str, ...]] = {
    "t3": ("bnb-4bit", "bnb-8bit", "awq"),
    "s3gen": ("bnb-4bit", "bnb-8bit"),
    "voice_encoder": ("bnb-4bit", "bnb-8bit"),
}
_AGAIN = "mend it, or make the directory again"


@dataclass(frozen=True)
class QuantizedParts:
    """The parts, by their names in `Family`, whose files hold quantized tensors."""

    t3: QuantizedPart | None = None
    s3gen: QuantizedPart | None = None
    voice_encoder: QuantizedPart | None = None

    @property
    def parts(self) -> dict[str, QuantizedPart]:
        """Those that are."""
        every = {"t3": self.t3, "s3gen": self.s3gen, "voice_encoder": self.voice_encoder}
        return {name: part for name, part in every.items() if part is not None}


@dataclass(frozen=True)
class ModelConfig:
    """All dimensions of one checkpoint, and which of its files are quantized.

    Attributes:
        synthetic: whether the weights are made up rather than trained; None where nobody says, as in published files.
    """

    family: str = "english"
    synthetic: bool | None = None
    t3: T3Config = field(default_factory=T3Config)
    s3gen: S3GenConfig = field(default_factory=S3GenConfig)
    voice_encoder: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    quantized: QuantizedParts = field(default_factory=QuantizedParts)

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Dimensions of the checkpoint in `directory`: its `config.json`, or the published sizes without one.

        Raises:
            ConfigError: the file is not JSON, not ours, or names an unknown field or a value of the wrong type.
        """
        path = directory / CONFIG_FILE
        return cls.from_file(path) if path.exists() else cls()

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Dimensions from a `config.json`, wherever it lies.

        Raises:
            ConfigError: as `from_directory`.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON ({error}); {_AGAIN}") from error
        if not isinstance(data, dict) or data.pop("format", None) != CONFIG_FORMAT:
            raise ConfigError(
                f'{path}: not a Chatterbox model configuration (it lacks "format": "{CONFIG_FORMAT}"); '
                f"{_AGAIN}, or remove it where the sizes are the published ones"
            )
        config: Self = _from_dict(cls, data, str(path))
        for part, stored in config.quantized.parts.items():
            if stored.method not in STORED_METHODS[part]:
                known = ", ".join(STORED_METHODS[part])
                raise ConfigError(f"{path}: quantized.{part}: expected {known}, found {stored.method!r}; {_AGAIN}")
        return config

    def to_json(self) -> str:
        """The text of a `config.json` that `from_directory` reads back as this object."""
        fields = dataclasses.asdict(self)
        if self.quantized == QuantizedParts():
            del fields["quantized"]
        if self.synthetic is None:
            del fields["synthetic"]
        return json.dumps({"format": CONFIG_FORMAT, **fields}, indent=1) + "\n"


def _from_dict(kind: type, data: Any, where: str) -> Any:
    """Build the frozen dataclass `kind` from JSON data, naming the faulty field in the error."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, found {data!r}")
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    values = {}
    for name, value in data.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown field {name!r}; the fields are {', '.join(sorted(known))}")
        values[name] = _field_value(known[name], value, f"{where}: {name}")
    for field_ in dataclasses.fields(kind):
        if field_.name not in values and field_.default is field_.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: field {field_.name!r} is missing")
    return kind(**values)


def _field_value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):  # X | None
        if value is None:
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list) and all(type(v) is int and v > 0 for v in value):
            return tuple(value)
        raise ConfigError(f"{where}: expected a list of positive integers, found {value!r}")
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where}: expected {hint.__name__}, found {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, found {value}")
    if hint is int and value < 0:
        raise ConfigError(f"{where}: must not be negative, found {value}")
    return value
