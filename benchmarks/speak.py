"""How fast one model speaks: loading, T3 alone and in batches, S3Gen, a sentence end to end, peak memory.

    python benchmarks/speak.py MODEL [--device cuda] [--batch 1 16] [--clip CLIP …] [--waves DIR] [--json FILE]

MODEL is what `ChatterboxTTS.from_pretrained` takes. Every request runs to `--tokens` speech tokens (25 to a second of
speech), whatever the model wants to say, so that synthetic weights measure the same work as trained ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import soundfile
import torch

from chatterbox_vllm import ChatterboxTTS, SpeechParameters, Voice, __version__
from chatterbox_vllm.engine.request import SpeechRequest
from chatterbox_vllm.engine.s3gen_stage import TokensToSpeak

TEXT = "The quick brown fox jumps over the lazy dog, and then it does so once more to be quite sure."
TOKENS_PER_SECOND = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--s3gen-dtype", nargs="+", default=["float32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clip", type=Path, nargs="*", default=[])
    parser.add_argument("--waves", type=Path)
    parser.add_argument("--no-watermark", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    started = time.perf_counter()
    tts = ChatterboxTTS.from_pretrained(
        options.model,
        options.device,
        dtype=options.dtype,
        max_batch_size=max(options.batch),
        watermark=not options.no_watermark,
    )
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "chatterbox-vllm": __version__,
        "torch": torch.__version__,
        "device": device_name(tts.device),
        "T3 dtype": str(tts._talker.options.dtype),
        "tokens a request": options.tokens,
        "load s": round(time.perf_counter() - started, 1),
    }
    voices = {"builtin": tts.conds} | {clip.stem: enrol(tts, clip) for clip in options.clip}
    measure_t3(tts, options, facts)
    for dtype in options.s3gen_dtype:
        tts._voicing.stage.model.set_precision(
            getattr(torch, dtype), torch.float32 if dtype == "float32" else torch.float16
        )
        measure_s3gen(tts, options, facts, dtype)
        measure_sentence(tts, options, facts, dtype, voices)
    facts["peak host MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if tts.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        facts["device MiB in use at the end"] = (total - free) >> 20
    tts.shutdown()
    print(json.dumps(facts, indent=1))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


def measure_t3(tts: ChatterboxTTS, options: argparse.Namespace, facts: dict[str, Any]) -> None:
    talker = tts._talker
    prompt = tts._scheduler.prompts.prompt(TEXT, tts.conds, SpeechParameters(max_tokens=options.tokens))
    for batch in options.batch:
        rates = []
        for repeat in range(options.repeats + 1):
            for i in range(batch):
                talker.add(f"{batch}-{repeat}-{i}", prompt, SpeechParameters(max_tokens=options.tokens), seed=i)
            tokens, start = 0, time.perf_counter()
            while talker.unfinished:
                tokens += sum(len(output.token_ids) for output in talker.step())
            rates.append(tokens / (time.perf_counter() - start))
        facts[f"T3 tokens/s, {batch} at once"] = middle(rates[1:])


def measure_s3gen(tts: ChatterboxTTS, options: argparse.Namespace, facts: dict[str, Any], dtype: str) -> None:
    stage = tts._voicing.stage
    tokens = tuple(int(t) for t in torch.randint(0, 6561, (options.tokens,)))
    for batch in options.batch:
        speeds = []
        for repeat in range(options.repeats + 1):
            work = [TokensToSpeak(tokens, tts.conds, 10, seed=repeat * 1000 + i) for i in range(batch)]
            start = time.perf_counter()
            outcomes = stage.run(work)
            elapsed = time.perf_counter() - start
            assert all(isinstance(o, torch.Tensor) and torch.isfinite(o).all() for o in outcomes), outcomes
            speeds.append(batch * options.tokens / TOKENS_PER_SECOND / elapsed)
        facts[f"S3Gen x real time, {dtype}, {batch} at once"] = middle(speeds[1:])


def measure_sentence(
    tts: ChatterboxTTS, options: argparse.Namespace, facts: dict[str, Any], dtype: str, voices: dict[str, Voice]
) -> None:
    for name, voice in voices.items():
        times = []
        for repeat in range(options.repeats):
            request = SpeechRequest(TEXT, voice, SpeechParameters(max_tokens=options.tokens, seed=repeat))
            start = time.perf_counter()
            (result,) = tts.run([request])
            times.append(time.perf_counter() - start)
            if result.audio is None:
                raise result.error or RuntimeError("no audio")
        wave = result.audio
        seconds = len(wave) / tts.sr
        facts[f"sentence, {name}, S3Gen {dtype}"] = {
            "speech s": round(seconds, 2),
            "s": middle(times),
            "x real time": round(seconds / statistics.median(times), 2),
            "peak": round(wave.abs().max().item(), 3),
            "rms": round(wave.square().mean().sqrt().item(), 4),
        }
        if options.waves:
            options.waves.mkdir(parents=True, exist_ok=True)
            soundfile.write(options.waves / f"{name}-{dtype}.flac", wave.numpy(), tts.sr)


def enrol(tts: ChatterboxTTS, clip: Path) -> Voice:
    wave, rate = soundfile.read(clip, dtype="float32", always_2d=True)
    return tts._enroller.enrol(wave.mean(axis=1), rate)


def middle(values: list[float]) -> float:
    return round(statistics.median(values), 3)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
