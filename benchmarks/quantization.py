"""What quantization does to each component: bytes on the live modules against theory, error against float32, speed.

    python benchmarks/quantization.py MODEL [--device cuda] [--components t3 s3gen] [--methods bnb-8bit bnb-4bit]

MODEL is as in `chatterbox-vllm say --model`. Theory is `QuantizationMemoryEstimator`'s, from the files' headers. The
error is the relative L2 distance of a component's output from float32's on the same weights: S3Gen's mel, the voice
encoder's embedding. T3's is left to `chatterbox-vllm evaluate`. Speed: T3's tokens/s alone, S3Gen's and the voice
encoder's seconds of audio a second.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm.bench.probe import machine
from chatterbox_vllm.bench.stages import SENTENCE, TOKENS_PER_SECOND
from chatterbox_vllm.checkpoint import Weights, load_module
from chatterbox_vllm.config import ModelConfig
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.engine.runtime import resolve_device
from chatterbox_vllm.errors import ChatterboxError
from chatterbox_vllm.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.families import FAMILIES
from chatterbox_vllm.hub import resolve_model
from chatterbox_vllm.models.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.models.voice_encoder import VoiceEncoder
from chatterbox_vllm.quantization.config import METHODS, QuantizationConfig
from chatterbox_vllm.quantization.info import component_info
from chatterbox_vllm.quantization.modules import quantize_layers
from chatterbox_vllm.quantization.storage import Scheme, scheme_of
from chatterbox_vllm.tiers import Plan
from chatterbox_vllm.tts import ChatterboxTTS
from chatterbox_vllm.voices import Voice

Row = dict[str, Any]
_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--components", nargs="+", default=["t3", "s3gen", "voice_encoder"])
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=["bnb-8bit", "bnb-4bit"])
    parser.add_argument("--seconds", type=float, default=5, help="of speech at each measurement")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    directory, device = resolve_model(options.model), resolve_device(options.device)
    rows: list[Row] = []
    for component in options.components:
        measure = {"t3": t3_row, "s3gen": s3gen_row, "voice_encoder": voice_encoder_row}[component]
        reference: list[torch.Tensor] = []
        for method in (None, *options.methods):
            try:
                row = measure(directory, device, method, options.seconds, reference)
            except ChatterboxError as error:
                row = {"why not": str(error)}
            rows.append({"component": component, "method": method, **row})
            print("  ".join(f"{name}: {value}" for name, value in rows[-1].items()), flush=True)
    if options.json is not None:
        options.json.write_text(
            json.dumps({**machine(device), "model": options.model, "results": rows}, indent=1) + "\n"
        )


def t3_row(
    directory: Path, device: torch.device, method: str | None, seconds: float, reference: list[torch.Tensor]
) -> Row:
    tokens = round(seconds * TOKENS_PER_SECOND)
    parameters = SpeechParameters(max_tokens=tokens)
    config = QuantizationConfig(t3=method)
    dtype = "bfloat16" if method == "awq" else "auto"
    with ChatterboxTTS.from_local(
        directory, str(device), quantization=config, dtype=dtype, max_batch_size=1, watermark=False
    ) as tts:
        scheduler, talker = tts.lend_scheduler()
        prompt = scheduler.prompts.prompt(SENTENCE, tts.voice, parameters)

        def speak() -> float:
            talker.add("bench", prompt, parameters, seed=0)
            spoken = 0
            while talker.unfinished:
                spoken += sum(len(output.token_ids) for output in talker.step())
            return spoken

        speed = _fastest(speak, device)
        tts.return_scheduler()
        estimator = QuantizationMemoryEstimator(directory, half=talker.options.dtype != torch.float32)
        info = component_info(talker.model)
        theory = estimator.estimate(Plan(config)).device["T3 linear layers"]
        return {**_bytes(info, theory if method else None), "tokens/s": round(speed, 1)}


def s3gen_row(
    directory: Path, device: torch.device, method: str | None, seconds: float, reference: list[torch.Tensor]
) -> Row:
    config = ModelConfig.from_directory(directory)
    family = FAMILIES[config.family]
    weights, voice = Weights(directory / family.s3gen), Voice.load(directory / family.builtin_voice, config)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    count = round(seconds * TOKENS_PER_SECOND)
    tokens = torch.randint(0, config.s3gen.flow.vocab_size, (count,), generator=torch.Generator().manual_seed(0))

    def load(kind: torch.dtype, scheme: Scheme | None) -> tuple[S3Gen, S3GenRequest]:
        model = S3Gen.from_weights(config.s3gen, weights, device, kind, kind, quantization=scheme)
        return model, S3GenRequest(
            tokens, voice, model.draw_noise(torch.Generator(device).manual_seed(1), count, voice)
        )

    if not reference:
        model, request = load(torch.float32, None)
        reference.append(model.mel([request], _STEPS)[0])
        del model
    scheme = None if method is None else scheme_of(method)
    model, request = load(dtype, scheme)
    theory = None
    if scheme is not None:
        theory = sum(scheme.stored_bytes(_shape(model, name)) for name in model.quantizable_layers())
    error = _apart(model.mel([request], _STEPS)[0], reference[0])

    def speak() -> float:
        model.synthesize([request], _STEPS)
        return seconds

    return {
        **_bytes(component_info(model), theory),
        "error": round(error, 5),
        "x real time": round(_fastest(speak, device), 2),
    }


def voice_encoder_row(
    directory: Path, device: torch.device, method: str | None, seconds: float, reference: list[torch.Tensor]
) -> Row:
    config = ModelConfig.from_directory(directory)
    with torch.device("meta"):
        encoder = VoiceEncoder(config.voice_encoder)
    scheme = None if method is None else scheme_of(method)
    if scheme is not None:
        quantize_layers(encoder, encoder.quantizable_layers(), scheme)
    load_module(encoder, Weights(directory / FAMILIES[config.family].voice_encoder), "", device)
    partials = torch.rand(8, 160, config.voice_encoder.num_mels, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        out = encoder(partials)
        if not reference:
            reference.append(out)
        info = component_info(encoder)
        shapes = [m.shape for layer in (encoder.lstm, encoder.proj) for m in getattr(layer, "matrices", {}).values()]
        theory = sum(map(scheme.stored_bytes, shapes)) if scheme else None

        def embed() -> float:
            encoder(partials)
            return 8 * 1.6

        return {
            **_bytes(info, theory),
            "error": round(_apart(out, reference[0]), 5),
            "x real time": round(_fastest(embed, device), 1),
        }


def _shape(model: torch.nn.Module, name: str) -> tuple[int, int]:
    layer = model.get_submodule(name)
    return (layer.out_features, layer.in_features)  # type: ignore[return-value]


def _bytes(info: Any, theory: int | None) -> Row:
    row: Row = {"MiB": round(info.total_bytes / 2**20, 2), "quantized": f"{info.quantized_layers}/{info.linear_layers}"}
    if info.quantized_weights and theory is not None:
        row["bytes/weight"] = round(info.bytes_per_weight, 4)
        row["theory"] = round(theory / info.quantized_weights, 4)
    return row


def _apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def _fastest(work: Callable[[], float], device: torch.device) -> float:
    """What `work` returns, a second; the best of three after one to warm up."""
    work()
    speeds = []
    for _ in range(3):
        start = time.perf_counter()
        done = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(done / (time.perf_counter() - start))
    return max(speeds)


if __name__ == "__main__":
    main()
