"""Options that several commands share, and what they mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.quantization.config import AUTO, STRATEGIES

if TYPE_CHECKING:
    from chatterbox_vllm.engine.request import SpeechParameters
    from chatterbox_vllm.tts import ChatterboxTTS

DTYPES = ("auto", "float32", "float16", "bfloat16")


def add_model(parser: argparse.ArgumentParser, default: str | None) -> None:
    """Which model, and where."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=default,
        help="english (downloaded at first use), demo (needs no download, babbles), a directory, or a hub id",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def add_speech(parser: argparse.ArgumentParser) -> None:
    """A group for each of `SpeechParameters`."""
    voice = parser.add_argument_group("how to speak (defaults are the published model's)")
    voice.add_argument("--exaggeration", type=float, metavar="X", default=0.5, help="emotion, 0.5 is neutral")
    voice.add_argument(
        "--cfg-weight", type=float, metavar="X", default=0.5, help="guidance towards the text, 0 is none"
    )
    voice.add_argument("--temperature", type=float, metavar="X", default=0.8, help="0 takes the likeliest token")
    voice.add_argument("--min-p", type=float, metavar="X", default=0.05, help="least share of the likeliest token")
    voice.add_argument("--top-p", type=float, metavar="X", default=1.0, help="nucleus of the distribution")
    voice.add_argument("--repetition-penalty", type=float, metavar="X", default=1.2, help="1 is none")
    voice.add_argument("--max-tokens", type=int, metavar="N", default=1000, help="most speech tokens, 25 to a second")
    voice.add_argument("--steps", type=int, metavar="N", default=10, help="diffusion steps from noise to mel")
    voice.add_argument("--seed", type=int, metavar="N", help="same seed, same audio; the seed used is printed")


def add_engine(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How the engine runs."""
    engine = parser.add_argument_group("how to run")
    engine.add_argument("--dtype", choices=DTYPES, default="auto", help="T3's precision")
    engine.add_argument("--s3gen-dtype", choices=DTYPES, default="auto", help="the flow's precision")
    engine.add_argument("--max-model-len", type=int, metavar="N", help="longest prompt and speech (default: 2048)")
    engine.add_argument(
        "--tier",
        metavar="GB",
        help="lay the process out for a card of 4, 6, 8, 12, 24 or 48 GB, or auto by free memory",
    )
    engine.add_argument(
        "--quantization",
        metavar="STRATEGY",
        choices=(*STRATEGIES, AUTO),
        help="conservative, mixed, aggressive, nf4, int8, or auto by free memory (default: the tier's, or none)",
    )
    engine.add_argument("--no-cuda-graphs", action="store_true", help="start faster, speak slower")
    engine.add_argument(
        "--deterministic", action="store_true", help="tokens independent of the batch in half precision too; slower"
    )
    engine.add_argument("--no-watermark", action="store_true", help="leave the PerTh watermark out")
    return engine


def speech_parameters(options: argparse.Namespace) -> SpeechParameters:
    """What `add_speech` asked for, checked.

    Raises:
        ConfigError: a value out of range.
    """
    from chatterbox_vllm.engine.request import SpeechParameters

    return SpeechParameters(
        exaggeration=options.exaggeration,
        cfg_weight=options.cfg_weight,
        temperature=options.temperature,
        min_p=options.min_p,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        diffusion_steps=options.steps,
        seed=options.seed,
    )


def check_clip(path: Path | None) -> None:
    """Refuse a clip or saved voice that cannot serve, before the model loads.

    Raises:
        AudioError, CheckpointError
    """
    if path is not None:
        from chatterbox_vllm.voices.files import check_voice_file

        check_voice_file(path)


def load(options: argparse.Namespace, max_batch_size: int | None) -> ChatterboxTTS:
    """The model that `add_model` and `add_engine` asked for; `max_batch_size` None leaves it to the tier."""
    from chatterbox_vllm.tts import ChatterboxTTS

    given: dict[str, Any] = {
        "dtype": options.dtype,
        "s3gen_dtype": options.s3gen_dtype,
        "max_model_len": options.max_model_len,
        "max_batch_size": max_batch_size,
        "cuda_graphs": False if options.no_cuda_graphs else None,
        "watermark": not options.no_watermark,
        "deterministic": options.deterministic,
        "tier": options.tier,
    }
    if options.quantization is None:
        return ChatterboxTTS.from_pretrained(options.model, options.device, **given)
    return ChatterboxTTS.from_pretrained_quantized(
        options.model, options.device, quantization_strategy=options.quantization, **given
    )
