"""Which model, how it runs, and what of it is quantized."""

from __future__ import annotations

from chatterbox_vllm.settings.setting import Setting

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
        "multi_step",
        "decode steps of T3 for a turn of vLLM's scheduler, at most, fewer as soon as a request comes: less work for "
        "the host",
        unset="18 with CUDA, else 1; 1 in deterministic mode and of Flash",
        option="--multi-step",
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
STREAM_PROMPT_SECONDS = Setting(
    "stream_prompt_seconds",
    "how much of the reference clip S3Gen continues behind in a stream of speech, in seconds: the end of its first 10 "
    "s. Less is faster, and less like the voice; whole audio is not touched",
    unset="all, 10 s at most",
    option="--stream-prompt-seconds",
    variable="CHATTERBOX_STREAM_PROMPT_SECONDS",
)
STREAM = (STREAM_PROMPT_SECONDS,)
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
