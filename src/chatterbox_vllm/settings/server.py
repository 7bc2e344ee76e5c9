"""How a server serves."""

from __future__ import annotations

from chatterbox_vllm.settings.setting import Setting

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
