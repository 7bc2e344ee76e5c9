"""How fast S3Gen turns speech tokens into audio, and how far its half precision is from float32.

    python benchmarks/s3gen.py MODEL [--device cuda] [--batch 1 8 32] [--seconds 5 10] [--json FILE]

MODEL is a directory with `s3gen.safetensors`, or that file. Utterances are random tokens of a length drawn from
`--seconds`, in a random voice with a reference of `--reference` seconds; the work is that of real ones.

Rows of the table: what S3Gen is asked for (dtype of flow and vocoder, kernels, CUDA graphs); columns: batch, seconds of
audio, x real time, milliseconds in all and of encoder, estimator and vocoder each run alone, peak memory.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from chatterbox_vllm import __version__
from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.s3gen.ragged import padding_mask

TOKENS_PER_SECOND = 25
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """What S3Gen is asked for."""

    dtype: str
    vocoder_dtype: str
    kernels: str
    cuda_graphs: bool

    def __str__(self) -> str:
        graphs = "graphs" if self.cuda_graphs else "eager"
        return f"{self.dtype}, vocoder {self.vocoder_dtype}, {self.kernels}, {graphs}"


def settings(device: str) -> list[Setting]:
    if device == "cpu":
        return [Setting("float32", "float32", "torch", False)]
    return [
        Setting("float16", "float16", "triton", True),
        Setting("float16", "float32", "triton", True),
        Setting("bfloat16", "float16", "triton", True),
        Setting("float16", "float16", "triton", False),
        Setting("float16", "float16", "torch", True),
        Setting("float16", "float16", "torch", False),
        Setting("float32", "float32", "torch", True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, nargs=2, default=[5, 10], metavar=("FROM", "TO"))
    parser.add_argument("--reference", type=float, default=10, help="seconds of the reference clip")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", type=int, help="the first so many settings")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    path = options.model / "s3gen.safetensors" if options.model.is_dir() else options.model
    weights = Weights(path)
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "chatterbox-vllm": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
        "reference s": options.reference,
        "utterance s": options.seconds,
        "steps": options.steps,
        "results": [],
    }
    exact = S3Gen.from_weights(S3GenConfig(), weights, options.device)
    sample = utterances(exact, 4, options)
    mels = exact.mel(sample, options.steps)
    waves = exact.waveform(mels, [request.noise for request in sample])
    del exact
    print(
        f"{'setting':<48}{'batch':>6}{'audio s':>9}{'x real':>8}{'all':>9}{'enc':>7}{'est':>8}{'voc':>7} ms{'MiB':>8}"
    )
    for setting in settings(options.device)[: options.only]:
        started = time.perf_counter()
        model = S3Gen.from_weights(
            S3GenConfig(),
            weights,
            options.device,
            DTYPES[setting.dtype],
            DTYPES[setting.vocoder_dtype],
            kernels=setting.kernels,
            cuda_graphs=setting.cuda_graphs,
        )
        errors = errors_of(model, sample, mels, waves, options.steps)
        ready = time.perf_counter() - started
        for batch in options.batch:
            facts["results"].append(asdict(setting) | measure(model, utterances(model, batch, options), options))
            show(setting, facts["results"][-1])
        facts["results"][-1] |= errors | {"s to load, compile and speak once": round(ready, 1)}
        print("    " + ", ".join(f"{name} {value}" for name, value in errors.items()) + f", ready in {ready:.1f} s")
        del model
        if options.json:
            options.json.write_text(json.dumps(facts, indent=1) + "\n")


def utterances(model: S3Gen, count: int, options: argparse.Namespace) -> list[S3GenRequest]:
    """Always the same; a lone one has the longest length."""
    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    count_of_prompt = round(options.reference * TOKENS_PER_SECOND)
    prompt = FlowPrompt(
        torch.randint(0, 6561, (count_of_prompt,), generator=generator),
        2 * torch.randn(2 * count_of_prompt, 80, generator=generator) - 5,
        torch.randn(192, generator=generator),
    )
    shortest, longest = (round(s * TOKENS_PER_SECOND) for s in options.seconds)
    requests = []
    for seed in range(count):
        tokens = longest if count == 1 else draw.randint(shortest, longest)
        noise = model.draw_noise(seed, tokens, prompt)
        requests.append(S3GenRequest(torch.randint(0, 6561, (tokens,), generator=generator), prompt, noise))
    return requests


def measure(model: S3Gen, requests: Sequence[S3GenRequest], options: argparse.Namespace) -> dict[str, Any]:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    mels = model.mel(requests, options.steps)
    noises = [request.noise for request in requests]
    tokens = [torch.cat([r.prompt.tokens, r.speech_tokens]).to(model.device) for r in requests]

    @torch.inference_mode()
    def encode() -> None:
        model.encoder(pad_sequence(tokens, batch_first=True), padding_mask([len(t) for t in tokens], model.device))

    audio = sum(len(request.speech_tokens) for request in requests) / TOKENS_PER_SECOND
    total = seconds_of(lambda: model.synthesize(requests, options.steps), options)
    encoder = seconds_of(encode, options)
    flow = seconds_of(lambda: model.mel(requests, options.steps), options)
    vocoder = seconds_of(lambda: model.waveform(mels, noises), options)
    result = {
        "batch": len(requests),
        "audio s": round(audio, 1),
        "x real time": round(audio / total, 1),
        "all ms": round(total * 1e3, 1),
        "encoder ms": round(encoder * 1e3, 1),
        "estimator ms": round((flow - encoder) * 1e3, 1),
        "vocoder ms": round(vocoder * 1e3, 1),
    }
    if model.device.type == "cuda":
        result["peak MiB"] = torch.cuda.max_memory_allocated() >> 20
    return result


def seconds_of(run: Callable[[], object], options: argparse.Namespace) -> float:
    """Median wall time, the device idle before and after."""
    times = []
    for _ in range(options.repeats + 1):
        if options.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if options.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def errors_of(
    model: S3Gen,
    requests: Sequence[S3GenRequest],
    mels: Sequence[torch.Tensor],
    waves: Sequence[torch.Tensor],
    steps: int,
) -> dict[str, float]:
    """Largest relative L2 distances: of mels and of waveforms of the same mels from float32, and alone from batched."""
    own = model.mel(requests, steps)
    again = model.waveform(mels, [request.noise for request in requests])
    alone = model.mel(requests[:1], steps)
    return {
        "mel error": max(map(apart, own, mels)),
        "vocoder error": max(map(apart, again, waves)),
        "mel alone against batched": apart(alone[0], own[0]),
    }


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(f"{float((a - b).norm() / b.norm()):.2e}")


def show(setting: Setting, result: dict[str, Any]) -> None:
    parts = "".join(f"{result[f'{part} ms']:>{n}.1f}" for part, n in (("encoder", 7), ("estimator", 8), ("vocoder", 7)))
    print(
        f"{setting!s:<48}{result['batch']:>6}{result['audio s']:>9.1f}{result['x real time']:>8.1f}"
        f"{result['all ms']:>9.1f}{parts}   {result.get('peak MiB', 0):>8}",
        flush=True,
    )


if __name__ == "__main__":
    main()
