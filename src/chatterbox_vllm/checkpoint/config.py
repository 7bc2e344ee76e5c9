"""Dimensions of the models, as data.

The defaults are the published sizes of the first Chatterbox. A checkpoint of another size says so in a `config.json`
beside its files (see `ModelConfig.from_file`); the code is the same for both.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval
from typing_extensions import Self

from chatterbox_vllm.checkpoint.config_faults import AGAIN, contradictions, described
from chatterbox_vllm.errors import ConfigError

CONFIG_FILE = "config.json"
CONFIG_FORMAT = "chatterbox"
Count = Annotated[int, Ge(0)]
Layers = Annotated[int, Interval(ge=1, le=1000)]  # a module is made for each before any file is looked at
Sizes = tuple[Annotated[int, Gt(0)], ...]


class _FromFile:
    """What is read from a file is taken as it stands: no field unknown, no value of another type, no NaN."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


@dataclass(frozen=True)
class BlockDecoding(_FromFile):
    """How T3 fills in blocks of masked tokens, each over several steps, where it does not draw one token after another.

    The published values; what they do stands in `t3/blocks/unmasking.py`.

    Attributes:
        block_size: tokens of a block.
        steps: most that a block takes.
        schedule_shift: of the curve by which a block fills up at least; below 1 it fills more slowly at first.
        time_shift: how fast the quantile of scores falls above which tokens are taken beyond the curve; 0 takes none.
        position_noise: factor on the Gumbel noise by which positions are chosen; 0 always takes the best.
        tokens_per_text_token, least_max_tokens: the most speech tokens where a caller names no limit: so many for every
            text token (start and stop included), but this many at least.
    """

    block_size: Annotated[int, Gt(0)] = 16
    steps: Annotated[int, Gt(0)] = 10
    schedule_shift: Annotated[float, Gt(0)] = 0.5
    time_shift: Annotated[float, Ge(0)] = 0.1
    position_noise: Annotated[float, Ge(0)] = 1.0
    tokens_per_text_token: Count = 6
    least_max_tokens: Count = 300

    def most_tokens(self, text_tokens: int) -> int:
        """Speech tokens for so many text tokens, start and stop included."""
        return max(self.tokens_per_text_token * text_tokens, self.least_max_tokens)


@dataclass(frozen=True)
class T3Config(_FromFile):
    """T3, the language model from text tokens to speech tokens.

    Attributes:
        backbone: of the transformer; what follows from it is in `t3/llama.py` and `t3/gpt2.py`, and of what a backbone
            has no use for it reads nothing: RoPE, learned text and speech positions, perceiver are Llama's.
        positions: of GPT-2's own table, for prompt and speech together.
        text_positions: of the learned table, the text's start and stop included; of GPT-2, most text tokens.
        speech_prompt_tokens: most speech tokens of the reference clip in a prompt.
        guidance_streams: classifier-free guidance computes two streams of every sequence, a model without it one.
        penalty_last: the repetition penalty comes after temperature, top-k and top-p, and not before them.
        blocks: how speech is filled in block by block; None draws one token after another.
        alignment_heads: layer and head of those that look at the text token that is being said, where some are known.
    """

    backbone: Literal["llama", "gpt2"] = "llama"
    hidden_size: Count = 1024
    num_layers: Layers = 30
    num_heads: Count = 16
    head_dim: Count = 64
    intermediate_size: Count = 4096
    rms_norm_eps: float = 1e-5
    layer_norm_eps: float = 1e-5

    rope_theta: float = 500_000.0
    rope_factor: float = 8.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_max_position: Count = 8192

    text_vocab_size: Count = 704
    speech_vocab_size: Count = 8194
    text_positions: Count = 2050
    speech_positions: Count = 4100
    positions: Count = 8196
    start_text_token: Count = 255
    stop_text_token: Count = 0
    start_speech_token: Count = 6561
    stop_speech_token: Count = 6562

    speaker_embedding_size: Count = 256
    speech_prompt_tokens: Count = 150
    perceiver_queries: Count = 32
    perceiver_heads: Count = 4
    guidance_streams: Literal[1, 2] = 2
    penalty_last: bool = False
    blocks: BlockDecoding | None = None
    alignment_heads: tuple[tuple[Count, Count], ...] = ()

    @property
    def speech_embeddings(self) -> int:
        """Rows of the speech embedding: what is filled in block by block has one for masked tokens behind the rest."""
        return self.speech_vocab_size + (self.blocks is not None)

    @property
    def mask_token(self) -> int:
        """Stands for a token that is not filled in yet; the head does not know it."""
        return self.speech_vocab_size

    @property
    def conditioning_length(self) -> int:
        """Rows that Llama's conditioning takes at the head of every prompt: speaker, perceiver queries, emotion."""
        return 1 + self.perceiver_queries + 1


@dataclass(frozen=True)
class VoiceEncoderConfig(_FromFile):
    """The LSTM speaker encoder whose embedding conditions T3."""

    num_mels: Count = 40
    hidden_size: Count = 256
    num_layers: Layers = 3
    embedding_size: Count = 256


@dataclass(frozen=True)
class SpeechTokenizerConfig(_FromFile):
    """The S3 tokenizer (v2, 25 Hz): reference audio at 16 kHz to speech tokens."""

    num_mels: Count = 128
    hidden_size: Count = 1280
    num_heads: Count = 20
    num_layers: Layers = 6
    memory_kernel: Count = 31
    code_size: Count = 8


@dataclass(frozen=True)
class XVectorConfig(_FromFile):
    """CAMPPlus, the x-vector net whose embedding conditions the flow."""

    num_mels: Count = 80
    head_channels: Count = 32
    init_channels: Count = 128
    growth_rate: Count = 32
    bottleneck_factor: Count = 4
    block_layers: Sizes = (12, 24, 16)
    block_dilations: Sizes = (1, 2, 2)
    embedding_size: Count = 192


@dataclass(frozen=True)
class FlowConfig(_FromFile):
    """Speech tokens to mel: conformer encoder, then a conditional flow-matching decoder."""

    vocab_size: Count = 6561
    num_mels: Count = 80
    hidden_size: Count = 512
    encoder_heads: Count = 8
    encoder_ff_size: Count = 2048
    encoder_blocks: Layers = 6
    upsampled_blocks: Layers = 4
    lookahead: Count = 3
    estimator_channels: Count = 256
    estimator_heads: Count = 8
    estimator_head_dim: Count = 64
    estimator_transformer_blocks: Layers = 4
    estimator_mid_stages: Layers = 12
    cfg_rate: float = 0.7
    meanflow: bool = False


@dataclass(frozen=True)
class HiFTConfig(_FromFile):
    """HiFT vocoder: mel at 50 frames/s to a 24 kHz waveform, with its F0 predictor and harmonic source."""

    num_mels: Count = 80
    base_channels: Count = 512
    upsample_rates: Sizes = (8, 5, 3)
    upsample_kernels: Sizes = (16, 11, 7)
    resblock_kernels: Sizes = (3, 7, 11)
    resblock_dilations: Sizes = (1, 3, 5)
    source_kernels: Sizes = (7, 7, 11)
    fft_size: Count = 16
    hop_size: Count = 4
    harmonics: Count = 8
    f0_channels: Count = 512
    f0_layers: Layers = 5
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
class S3GenConfig(_FromFile):
    """Everything in `s3gen.safetensors`: enrolment nets, flow and vocoder."""

    tokenizer: SpeechTokenizerConfig = field(default_factory=SpeechTokenizerConfig)
    xvector: XVectorConfig = field(default_factory=XVectorConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiFTConfig = field(default_factory=HiFTConfig)


@dataclass(frozen=True)
class EnrolmentConfig(_FromFile):
    """What T3 gets of a reference clip.

    Attributes:
        recipe: what this way is called; None is the first Chatterbox's. A voice holds what one of them made, which is
            nonsense to a model of another.
        speech_prompt_seconds: how much of the clip T3's speech prompt hears.
        least_seconds: what a clip has to be longer than; 0 leaves it to what every clip must have.
        loudness: in LUFS, what a clip is brought to; None leaves it as it is.
    """

    recipe: str | None = None
    speech_prompt_seconds: Count = 6
    least_seconds: float = 0.0
    loudness: float | None = None

    def loudness_of(self, norm_loudness: bool | None) -> float | None:
        """What a clip is brought to, in LUFS; None leaves it as it is.

        Args:
            norm_loudness: whether it is to be; None is the recipe's own way.

        Raises:
            ConfigError: it is to be, and the recipe names no loudness.
        """
        if norm_loudness and self.loudness is None:
            raise ConfigError("this model has no norm_loudness, it hears clips as loud as they are; leave it out")
        return None if norm_loudness is False else self.loudness


@dataclass(frozen=True)
class QuantizedPart(_FromFile):
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


@dataclass(frozen=True)
class QuantizedParts(_FromFile):
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
class ModelConfig(_FromFile):
    """All dimensions of one checkpoint, and which of its files are quantized.

    Attributes:
        family: its name in `families/registry.py`; None is the default there, as published files say nothing.
        synthetic: whether the weights are made up rather than trained; None where nobody says, as in published files.
        codebook: what its speech tokens are called; None are the published ones. A voice holds tokens, so one of
            another codebook would be nonsense.
        diffusion_steps: solver steps of its flow where nobody says otherwise; None are the family's.
        enrolment: how its voices are made.
    """

    family: str | None = None
    synthetic: bool | None = None
    codebook: str | None = None
    diffusion_steps: Annotated[int, Interval(ge=1, le=100)] | None = None
    t3: T3Config = field(default_factory=T3Config)
    s3gen: S3GenConfig = field(default_factory=S3GenConfig)
    voice_encoder: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    enrolment: EnrolmentConfig = field(default_factory=EnrolmentConfig)
    quantized: QuantizedParts = field(default_factory=QuantizedParts)

    @property
    def voice_kind(self) -> str | None:
        """Of which kind its voices are, see `voice_kind`."""
        return voice_kind(self.codebook, self.enrolment.recipe)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Dimensions from a `config.json`, wherever it lies.

        Raises:
            ConfigError: the file is not JSON, not ours, or names an unknown field or a value of the wrong type.
        """
        from pydantic import ValidationError  # time that `--help` need not take

        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON ({error}); {AGAIN}") from error
        if not isinstance(data, dict) or data.pop("format", None) != CONFIG_FORMAT:
            raise ConfigError(
                f'{path}: not a Chatterbox model configuration (it lacks "format": "{CONFIG_FORMAT}"); '
                f"{AGAIN}, or remove it where the sizes are the published ones"
            )
        try:
            # From JSON, not from the dictionary: there a list may stand for a tuple.
            config: Self = _reader().validate_json(json.dumps(data))
        except ValidationError as error:
            raise ConfigError(f"{path}: {described(error.errors()[0])}") from error
        for wrong in contradictions(config.t3):
            raise ConfigError(f"{path}: t3: {wrong}; {AGAIN}")
        for part, stored in config.quantized.parts.items():
            if stored.method not in STORED_METHODS[part]:
                known = ", ".join(STORED_METHODS[part])
                raise ConfigError(f"{path}: quantized.{part}: expected {known}, found {stored.method!r}; {AGAIN}")
        return config

    def to_json(self) -> str:
        """The text of a `config.json` that `from_file` reads back as this object."""
        fields = dataclasses.asdict(self)
        if self.quantized == QuantizedParts():
            del fields["quantized"]
        if self.enrolment == EnrolmentConfig():
            del fields["enrolment"]
        if self.t3.blocks is None:
            del fields["t3"]["blocks"]
        if not self.t3.alignment_heads:
            del fields["t3"]["alignment_heads"]
        for name in ("family", "synthetic", "codebook", "diffusion_steps"):
            if fields[name] is None:
                del fields[name]
        return json.dumps({"format": CONFIG_FORMAT, **fields}, indent=1) + "\n"


def voice_kind(codebook: str | None, recipe: str | None) -> str | None:
    """What a voice has in common with the models that can use it: None is that of the first Chatterbox."""
    return codebook if recipe is None else f"{codebook or ''}+{recipe}"


@functools.cache
def _reader() -> Any:
    """Pydantic's reader of a configuration: it takes 20 ms to make, and a command reads its model's several times."""
    from pydantic import TypeAdapter

    return TypeAdapter(ModelConfig)
