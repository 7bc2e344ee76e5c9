"""The one table of all settings: keyword, command-line option, environment variable, default, meaning.

A setting is decided by its keyword (or the option, which stands for it), else by its environment variable, else by its
default. `docs/settings.md` is written from this table (tests/test_settings.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from chatterbox_vllm.errors import ConfigError

T = TypeVar("T")
D = TypeVar("D")
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


@dataclass(frozen=True)
class Setting:
    """One setting and every way to give it.

    Attributes:
        keyword: in Python; empty for what only the environment sets.
        meaning: what it does and what it takes.
        default: of the keyword; None where `unset` says what happens without a value.
        unset: what None means.
        option: on the command line, in the form that Typer takes; None where there is no option.
        variable: the environment variable that stands in where the keyword is None.
    """

    keyword: str
    meaning: str
    default: bool | int | float | str | None = None
    unset: str = ""
    option: str | None = None
    variable: str | None = None

    @property
    def shown_default(self) -> str:
        """The default in words, for tables and help."""
        if self.unset:
            return self.unset
        if isinstance(self.default, bool):
            return "on" if self.default else "off"
        return "none" if self.default is None else str(self.default)

    def resolve(self, value: object, parse: Callable[[object], T], default: D) -> T | D:
        """The keyword's value, or else the variable's where it is set and not empty, or else the default.

        Args:
            parse: raises ValueError with what it accepts.

        Raises:
            ConfigError: `parse` refused; the message names the keyword or the variable, and the value.
        """
        if value is not None:
            return self._parsed(self.keyword, value, parse)
        found = self.from_environment()
        return self._parsed(f"the environment variable {self.variable}", found, parse) if found else default

    def from_environment(self) -> str:
        """The variable's value, or nothing where it is not set."""
        return os.environ.get(self.variable, "").strip() if self.variable else ""

    def _parsed(self, where: str, value: object, parse: Callable[[object], T]) -> T:
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{where} must be {error}, not {value!r}") from None


def flag(value: object) -> bool:
    """True and False, and the usual words for them in the environment."""
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word in _YES or word in _NO:
        return word in _YES
    raise ValueError(f"{'/'.join(_YES)} or {'/'.join(_NO)}")


def positive(value: object) -> int:
    """A positive whole number."""
    try:
        number = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if number < 1:
        raise ValueError("a positive integer")
    return number


def above_zero(value: object) -> float:
    """A number above 0."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError("a number above 0")
    return number


def share(value: object) -> float:
    """A number above 0, at most 1."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise ValueError("a number above 0 and at most 1")
    return number


MAX_MODEL_LEN = Setting(
    "max_model_len",
    "longest prompt and speech together, in positions; a second of speech is 25",
    unset="the tier's, else 2048",
    option="--max-model-len",
    variable="CHATTERBOX_MAX_MODEL_LEN",
)
MAX_BATCH_SIZE = Setting(
    "max_batch_size",
    "most texts that T3 speaks at once",
    unset="the tier's, else 16, on a CPU 4",
    option="--max-batch-size",
    variable="CHATTERBOX_MAX_BATCH_SIZE",
)
GPU_MEMORY_UTILIZATION = Setting(
    "gpu_memory_utilization",
    "share of the card's memory that the process may take, above 0 and at most 1; T3's key-value cache gets what the "
    "rest of the process leaves of it. CUDA only",
    unset="the key-value cache is computed",
    option="--gpu-memory-utilization",
    variable="CHATTERBOX_GPU_MEMORY_UTILIZATION",
)
USE_QUANTIZATION = Setting(
    "use_quantization",
    "whether anything is quantized; off takes a tier's methods back",
    unset="the tier's methods, else nothing",
    option="--use-quantization/--no-use-quantization",
    variable="CHATTERBOX_USE_QUANTIZATION",
)
QUANTIZATION_METHOD = Setting(
    "quantization_method",
    "T3's method: bnb-4bit, bnb-8bit, awq or fp8",
    unset="the tier's, else bnb-4bit",
    option="--quantization-method",
    variable="CHATTERBOX_QUANTIZATION_METHOD",
)
QUANTIZE_S3GEN = Setting(
    "quantize_s3gen",
    "method of S3Gen's flow: bnb-4bit, bnb-8bit, or true for T3's",
    unset="the tier's, else none",
    option="--quantize-s3gen",
    variable="CHATTERBOX_QUANTIZE_S3GEN",
)
QUANTIZE_VOICE_ENCODER = Setting(
    "quantize_voice_encoder",
    "method of the voice encoder: bnb-4bit, bnb-8bit, or true for T3's",
    unset="the tier's, else none",
    option="--quantize-voice-encoder",
    variable="CHATTERBOX_QUANTIZE_VOICE_ENCODER",
)

MODEL_NAME = Setting(
    "model",
    'a family by name ("english", the published model, a download of 3 GB; "multilingual", which speaks 23 languages; '
    '"turbo" and "nano", which speak tags like [chuckle]; and others that docs/families.md lists), "small" (or "demo"; '
    "speaks English, comes with this package), a directory, or a hub id",
    unset="english; on the command line small where english is neither downloaded nor reachable",
    option="--model",
    variable="CHATTERBOX_MODEL",
)

# Keywords of `ChatterboxTTS.from_pretrained` and `from_pretrained_quantized`, and of `from_local` from `dtype` on.
MODEL = (
    MODEL_NAME,
    Setting("device", "auto, cpu, cuda or cuda:N", default="auto", option="--device"),
    Setting(
        "revision",
        "commit, branch or tag of a hub id",
        unset="the family's pinned commit, else the hub's newest",
        option="--revision",
    ),
)
ENGINE = (
    Setting(
        "tier",
        "lay the process out for a card of 4, 6, 8, 12, 24 or 48 GB, or auto by free memory",
        unset="no tier",
        option="--tier",
    ),
    Setting(
        "dtype",
        "T3's precision: auto, float32, float16 or bfloat16; auto is bfloat16 on CUDA (float16 where a card has none) "
        "and for AWQ, else float32",
        default="auto",
        option="--dtype",
    ),
    Setting(
        "s3gen_dtype",
        "the flow's precision: auto, float32, float16 or bfloat16; auto is float16 on CUDA, else float32",
        default="auto",
        option="--s3gen-dtype",
    ),
    MAX_MODEL_LEN,
    MAX_BATCH_SIZE,
    Setting(
        "kv_cache_bytes",
        "memory of T3's key-value cache, in bytes",
        unset="computed from max_model_len and max_batch_size",
        option="--kv-cache-bytes",
    ),
    GPU_MEMORY_UTILIZATION,
    Setting(
        "cuda_graphs",
        "record CUDA graphs: starts slower, speaks faster. CUDA only",
        unset="on with CUDA",
        option="--cuda-graphs/--no-cuda-graphs",
    ),
    Setting(
        "deterministic",
        "T3's tokens do not depend on the batch in half precision either; slower. CUDA only",
        default=False,
        option="--deterministic/--no-deterministic",
    ),
    Setting(
        "guard",
        "end speech that runs away from its text or leaves most of it out, and try again",
        default=True,
        option="--guard/--no-guard",
    ),
    Setting("watermark", "mark the audio with the PerTh watermark", default=True, option="--watermark/--no-watermark"),
    Setting(
        "teacher_forcing",
        "let requests bring the tokens that T3 has to say; for evaluation, not for service",
        default=False,
    ),
)
QUANTIZATION = (
    USE_QUANTIZATION,
    QUANTIZATION_METHOD,
    QUANTIZE_S3GEN,
    QUANTIZE_VOICE_ENCODER,
    Setting("use_bnb_quantization", "short for use_quantization with bnb-4bit", default=False),
    Setting("quantization", "a `QuantizationConfig`, in place of the five above", unset="what the others say"),
    Setting(
        "quantization_strategy",
        "conservative, mixed, aggressive, nf4, int8, or auto by free memory (`from_pretrained_quantized`)",
        default="auto",
        option="--quantization-strategy",
    ),
    Setting(
        "fallback",
        "step down to the next method where one cannot be had, or the card has no room, instead of an error",
        default=False,
        option="--fallback/--no-fallback",
    ),
)

# Fields of `SpeechParameters`, keywords of `ChatterboxTTS.generate`; the defaults are those of the default family.
SPEECH = (
    Setting("exaggeration", "emotion, 0 to 2; 0.5 is neutral", default=0.5, option="--exaggeration"),
    Setting("cfg_weight", "guidance towards the text, 0 to 10; 0 is none", default=0.5, option="--cfg-weight"),
    Setting("temperature", "0 to 5; 0 takes the likeliest token", default=0.8, option="--temperature"),
    Setting("min_p", "least share of the likeliest token's probability, 0 to 1", default=0.05, option="--min-p"),
    Setting("top_p", "nucleus of the distribution, above 0 to 1", default=1.0, option="--top-p"),
    Setting(
        "top_k",
        "so many of the likeliest tokens, 0 for all; Turbo and Nano have it",
        default=0,
        option="--top-k",
    ),
    Setting("repetition_penalty", "0.1 to 10; 1 is none", default=1.2, option="--repetition-penalty"),
    Setting(
        "max_tokens",
        "most speech tokens of a piece, 25 to a second; the default gives way to what the model length leaves",
        default=1000,
        option="--max-tokens",
    ),
    Setting(
        "diffusion_steps",
        "solver steps from noise to mel, 1 to 100",
        unset="what the model's config.json names, else 10",
        option="--diffusion-steps",
    ),
    Setting("seed", "the same seed gives the same audio", unset="a new one each time", option="--seed"),
)
LANGUAGE = Setting(
    "language",
    "of the text: a code such as de, or an English name such as German; the model has to speak it",
    unset="the model's only one, else told from the text",
    option="--language",
)
# Keyword of `ChatterboxTTS.generate`, beside the clip.
NORM_LOUDNESS = Setting(
    "norm_loudness",
    "bring a clip to the loudness that the model's voices have, or leave it as loud as it is; Turbo and Nano have it",
    unset="on for Turbo and Nano",
    option="--norm-loudness/--no-norm-loudness",
)
VOICE = (NORM_LOUDNESS,)
# Fields of `SpeechRequest`, keywords of `ChatterboxTTS.generate`.
TEXT = (
    Setting(
        "pauses",
        "a `Pauses`: seconds of silence where a text is cut, 0 to 60 each; on the command line KIND=SECONDS, repeated. "
        "[pause:0.5s] in a text asks for one there",
        unset="clause 0.15, sentence 0.35, paragraph 0.7, heading 0.7, scene 1",
        option="--pause",
    ),
    Setting(
        "clean_text",
        "make markdown, addresses, footnote marks and emoji fit to be spoken: true, or a `Cleaning`",
        default=False,
        option="--clean-text/--no-clean-text",
    ),
    LANGUAGE,
    Setting(
        "prepared_text",
        "the text holds what its language would need a library for (Chinese spaces between words, Japanese without "
        "kanji, Hebrew vowels, Russian stress), or is to be spoken without",
        default=False,
        option="--prepared-text/--no-prepared-text",
    ),
)

# Fields of `ServerOptions`; options of `chatterbox-vllm serve`.
SERVER = (
    Setting(
        "models",
        "a model as elsewhere, or NAME=MODEL for another name in requests; may be repeated, in the variable with "
        "commas: each is loaded when a request names it, and the first, which is loaded at once, speaks where none is "
        "named",
        unset="what CHATTERBOX_MODEL names, else english, or small where that is neither downloaded nor reachable",
        option="--model",
        variable="CHATTERBOX_MODELS",
    ),
    Setting(
        "models_memory_gb",
        "GiB that loaded models may take together, as `estimate` computes it: on the card, or on a CPU of the host's "
        "memory. The one that was used least recently is given back where another needs the room",
        unset="models stay loaded",
        option="--models-memory-gb",
        variable="CHATTERBOX_MODELS_MEMORY_GB",
    ),
    Setting(
        "host",
        "where it listens; 0.0.0.0 is every network",
        default="127.0.0.1",
        option="--host",
        variable="CHATTERBOX_HOST",
    ),
    Setting("port", "where it listens; 0 takes a free one", default=8000, option="--port", variable="CHATTERBOX_PORT"),
    Setting(
        "api_keys",
        "keys that open the server, with commas between them; clients send one as Authorization: Bearer KEY. Needed as "
        "soon as it listens beyond this machine",
        unset="none, on this machine alone",
        variable="CHATTERBOX_API_KEYS",
    ),
    Setting(
        "without_key",
        "let everybody in who reaches it, also from other machines",
        default=False,
        option="--without-key/--with-key",
        variable="CHATTERBOX_WITHOUT_KEY",
    ),
    Setting(
        "cors_origins",
        "pages that may call it from a browser: an origin such as https://chat.example.org, loopback for the pages of "
        "this machine, or * for all; may be repeated, in the variable with commas",
        unset="loopback",
        option="--cors-origins",
        variable="CHATTERBOX_CORS_ORIGINS",
    ),
    Setting(
        "voice_aliases",
        "ALIAS=VOICE, a name that stands for a voice, such as alloy=anna; may be repeated, in the variable with commas",
        unset="OpenAI's 13 names stand for the model's own voices",
        option="--voice-aliases",
        variable="CHATTERBOX_VOICE_ALIASES",
    ),
    Setting(
        "default_voice",
        "what speaks where a request names no voice",
        unset="the model's own voice",
        option="--default-voice",
        variable="CHATTERBOX_DEFAULT_VOICE",
    ),
    Setting(
        "url_audio",
        "fetch reference clips from public addresses that requests name",
        default=False,
        option="--url-audio/--no-url-audio",
        variable="CHATTERBOX_URL_AUDIO",
    ),
    Setting("max_text", "characters of one text", default=4096, option="--max-text", variable="CHATTERBOX_MAX_TEXT"),
    Setting(
        "max_recording_seconds",
        "seconds of one recording that is converted",
        default=600.0,
        option="--max-recording-seconds",
        variable="CHATTERBOX_MAX_RECORDING_SECONDS",
    ),
    Setting(
        "max_body_mb",
        "MiB of one request",
        default=32.0,
        option="--max-body-mb",
        variable="CHATTERBOX_MAX_BODY_MB",
    ),
    Setting(
        "max_requests",
        "requests on their way at once; more are answered with status 429",
        unset="8 for each of max_batch_size, 256 at most",
        option="--max-requests",
        variable="CHATTERBOX_MAX_REQUESTS",
    ),
    Setting(
        "max_connections",
        "connections at once; more are closed",
        default=1024,
        option="--max-connections",
        variable="CHATTERBOX_MAX_CONNECTIONS",
    ),
    Setting(
        "max_seconds",
        "seconds that a request may take",
        default=600.0,
        option="--max-seconds",
        variable="CHATTERBOX_MAX_SECONDS",
    ),
    Setting(
        "stall_seconds",
        "seconds that a client may neither send nor take anything",
        default=30.0,
        option="--stall-seconds",
        variable="CHATTERBOX_STALL_SECONDS",
    ),
    Setting(
        "idle_seconds",
        "seconds without a request after which a model is unloaded; the next request loads it again",
        unset="it stays loaded",
        option="--idle-seconds",
        variable="CHATTERBOX_IDLE_SECONDS",
    ),
    Setting(
        "drain_seconds",
        "seconds that requests on their way have to end after SIGTERM or Ctrl-C",
        default=30.0,
        option="--drain-seconds",
        variable="CHATTERBOX_DRAIN_SECONDS",
    ),
    Setting(
        "log_json",
        "log lines are JSON",
        default=False,
        option="--log-json/--no-log-json",
        variable="CHATTERBOX_LOG_JSON",
    ),
)
# What servers of this kind read already; only `serve` looks at them, after the settings of quantization.
QUANTIZATION_ENABLED = Setting(
    "",
    "serve: whether anything is quantized, as use_quantization says it",
    unset="what QUANTIZATION_BITS says",
    variable="QUANTIZATION_ENABLED",
)
QUANTIZATION_BITS = Setting(
    "",
    "serve: T3's method, 4 for bnb-4bit or 8 for bnb-8bit",
    unset="what the other settings say",
    variable="QUANTIZATION_BITS",
)

CACHE_DIRECTORY = Setting(
    "",
    "directory for what this package builds: the small model's files, T3's directories for vLLM",
    unset="chatterbox-vllm in XDG_CACHE_HOME, else in ~/.cache",
    variable="CHATTERBOX_VLLM_CACHE",
)
HEBREW_MODEL = Setting(
    "",
    "file of dicta-onnx's model, which Hebrew texts without diacritics need",
    unset="such texts are refused",
    variable="CHATTERBOX_HEBREW_MODEL",
)
VOICES_DIRECTORY = Setting(
    "",
    "directory of the voices that were saved by name",
    unset="chatterbox-vllm/voices in XDG_DATA_HOME, else in ~/.local/share",
    variable="CHATTERBOX_VOICES",
)
# What only the environment sets; the last two are read by start.sh.
ENVIRONMENT = (
    CACHE_DIRECTORY,
    VOICES_DIRECTORY,
    HEBREW_MODEL,
    QUANTIZATION_ENABLED,
    QUANTIZATION_BITS,
    Setting(
        "",
        "start.sh: which build of vLLM to install, cpu or cuda",
        unset="cuda where the driver lists a GPU, else cpu",
        variable="CHATTERBOX_VLLM_EXTRA",
    ),
    Setting(
        "",
        "start.sh: the Python to make .venv with, 3.11 to 3.13",
        unset="the first that is found",
        variable="CHATTERBOX_VLLM_PYTHON",
    ),
)

GROUPS: dict[str, tuple[Setting, ...]] = {
    "Which model, and where": MODEL,
    "How it runs": ENGINE,
    "Quantization": QUANTIZATION,
    "How it speaks": SPEECH,
    "How it hears a voice": VOICE,
    "How it reads a text": TEXT,
    "How it serves": SERVER,
    "Places and installation": ENVIRONMENT,
}
BY_KEYWORD: dict[str, Setting] = {s.keyword: s for group in GROUPS.values() for s in group if s.keyword}
VARIABLES: dict[str, Setting] = {s.variable: s for group in GROUPS.values() for s in group if s.variable}
