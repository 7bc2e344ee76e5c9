"""What each tier takes of a card and how fast it speaks there: the whole process.

    python benchmarks/tiers.py MODEL --clip CLIP [--plans none 4 6] [--json FILE]

Every plan has a process of its own, which loads the model, enrols the clip, and speaks as many requests of 10 s at once
as the plan holds; "none" is the model unquantized and without a tier, one request at a time. Peaks are what the process
held of the card: as the driver counts it, CUDA's context included, or where the driver does not know the process, in a
container, as PyTorch's allocator does, without the context. The estimate beside them is for requests of just that
length. Speeds are medians; the tokens/s are T3's alone with one request. Compare speeds within one run only: hosts
differ.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm import (
    ChatterboxError,
    ChatterboxTTS,
    QuantizationMemoryEstimator,
    SpeechParameters,
    SpeechRequest,
    Voice,
)
from chatterbox_vllm.bench.stages import SENTENCE, t3_rows
from chatterbox_vllm.cli.tables import of_rows, show
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.setup.models import resolve_model
from chatterbox_vllm.setup.probe import Probe
from chatterbox_vllm.setup.provenance import provenance
from chatterbox_vllm.setup.tiers import GIB, Plan, tier_named

DEVICE = torch.device("cuda", 0)
NONE = "none"
SECONDS = 10
INTERVAL = 0.005  # of samples; PyTorch keeps what it freed, so a peak lasts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clip", type=Path, required=True, help="whose voice to clone")
    parser.add_argument("--plans", nargs="+", default=[NONE, "4", "6", "8"], help="tiers, and none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", metavar="PLAN", help=argparse.SUPPRESS)  # in the process of one plan
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA device, and PyTorch finds none")
    if options.only is not None:
        print(json.dumps(measure(options.model, options.only, options.clip, options.repeats)))
        return
    rows = []
    for plan in options.plans:
        command = [sys.executable, __file__, options.model, "--clip", str(options.clip)]
        command += ["--only", plan, "--repeats", str(options.repeats)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise SystemExit(f"plan {plan} failed; see above")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        show(of_rows([rows[-1]]))
        print()
    show(of_rows(rows))
    if options.json is not None:
        facts = provenance(DEVICE, options.model, resolve_model(options.model))
        options.json.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n")


def measure(model: str, plan: str, clip: Path, repeats: int) -> dict[str, Any]:
    logging.getLogger("chatterbox_vllm").setLevel(logging.ERROR)
    arguments: dict[str, Any] = {"max_batch_size": 1} if plan == NONE else {"tier": plan}
    directory = resolve_model(model)
    start = time.perf_counter()
    with Probe(DEVICE, INTERVAL) as loading:
        tts = ChatterboxTTS.from_local(directory, str(DEVICE), **arguments)
    started = time.perf_counter() - start
    with tts:
        with Probe(DEVICE, INTERVAL) as enrolling:
            tts.prepare_conditionals(clip)
        requests = tts.t3_stage.options.max_batch_size
        with Probe(DEVICE, INTERVAL) as speaking:
            speeds = [speak(tts, requests) for _ in range(repeats + 1)][1:]
        (t3,) = t3_rows(tts, [1], SECONDS * TOKENS_PER_SECOND, repeats)
    peaks = {"loading": loading, "enrolling": enrolling, "speaking": speaking}
    return {
        "plan": plan,
        "start s": round(started, 1),
        **{f"{name}, GiB": gib(probe) for name, probe in peaks.items()},
        "counted by": speaking.usage.counted_by,
        "estimate, GiB": round(expected(directory, plan, requests, tts.voice) / GIB, 3),
        "budget, GiB": None if plan == NONE else tier_named(plan).budget / GIB,
        "requests": requests,
        "x real time": round(statistics.median(speeds), 1),
        "settings": tts.settings,
        "T3 tokens/s": t3["median"],
    }


def expected(directory: Path, plan: str, requests: int, voice: Voice) -> int:
    """Bytes on the card by `estimate`, for what `speak` asks for."""
    laid_out = Plan(max_batch_size=1) if plan == NONE else tier_named(plan).plan
    at_once = min(requests, laid_out.s3gen_batch)
    longest = len(voice.prompt.mel) + UPSAMPLING * SECONDS * TOKENS_PER_SECOND
    frames = min(at_once * longest, laid_out.s3gen_frames)
    spoken = replace(laid_out, s3gen_batch=at_once, s3gen_frames=frames)
    return QuantizationMemoryEstimator(directory).estimate(spoken, longest).device_total


def speak(tts: ChatterboxTTS, requests: int) -> float:
    """Seconds of audio a second."""
    parameters = SpeechParameters(max_tokens=SECONDS * TOKENS_PER_SECOND)
    start, audio = time.perf_counter(), 0.0
    request = SpeechRequest(SENTENCE, tts.voice, parameters, language=tts.language_of_english)
    for result in tts.run([request] * requests):
        if result.audio is None:
            raise result.error or ChatterboxError("nothing was spoken")
        audio += len(result.audio) / tts.sr
    return audio / (time.perf_counter() - start)


def gib(probe: Probe) -> float | None:
    peak = probe.usage.peak_device_bytes
    return None if peak is None else round(peak / GIB, 3)


if __name__ == "__main__":
    main()
