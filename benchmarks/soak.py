"""Hours of random work: does anything grow, leak or get lost?

    python benchmarks/soak.py MODEL --seconds 240 [--device cuda] [--clip CLIP …] [--json FILE]

Tasks come and go at random: short and long texts, several voices, all kinds of parameters, a share of them cancelled at
a random moment, some with deadlines they cannot keep.

What must hold, whatever a run finds:

- No request fails but those with a deadline that they cannot keep. One that says nothing has failed as well: the engine
  tries a mute piece again with other draws, which is why no request here is greedy.
- In the end no request is unfinished and no KV block is held.
- Memory does not grow: of the time after the first 35 %, in which allocators and caches settle, the largest use in the
  last third is at most 3 % above the largest in the first third. A leak goes on growing; what settles does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import resource
import time
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm import AsyncChatterbox, ChatterboxTTS, DeadlineError, SpeechParameters, SpeechRequest, Voice
from chatterbox_vllm.setup.provenance import provenance

WORDS = ["quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "wizards", "quietly", "judge"]
TASKS_AT_ONCE = 24
WARM_UP_SHARE = 0.35
GROWTH_ALLOWED = 1.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--s3gen-dtype", default="auto")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--clip", type=Path, nargs="*", default=[])
    parser.add_argument("--no-watermark", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.getLogger("chatterbox_vllm").setLevel(logging.ERROR)  # requests are cut off on purpose
    with ChatterboxTTS.from_pretrained(
        options.model,
        options.device,
        s3gen_dtype=options.s3gen_dtype,
        max_batch_size=16,
        watermark=not options.no_watermark,
    ) as tts:
        voices = [tts.voice, *(tts.enrol(clip) for clip in options.clip)]
        report = {
            **provenance(tts.device, options.model, tts.directory),
            "settings": tts.settings,
            **asyncio.run(soak(tts, voices, options)),
        }
    print(json.dumps({k: v for k, v in report.items() if k != "samples"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    raise SystemExit(0 if report["passed"] else 1)


async def soak(tts: ChatterboxTTS, voices: list[Voice], options: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(0)
    end = time.monotonic() + options.seconds
    counts = {"finished": 0, "cancelled": 0, "failed as asked": 0, "failed": 0}
    failures: list[str] = []
    samples: list[dict[str, float]] = []

    async with AsyncChatterbox(tts) as engine:

        async def one() -> None:
            text = " ".join(rng.choices(WORDS, k=rng.choice([1, 4, 12, 30, 150])))
            hopeless = rng.random() < 0.05
            request = SpeechRequest(
                text,
                rng.choice(voices),
                SpeechParameters(
                    seed=rng.randrange(1000),
                    cfg_weight=rng.choice([0.0, 0.5, 1.0]),
                    temperature=rng.choice([0.3, 0.8]),
                    max_tokens=rng.randrange(5, options.max_tokens),
                ),
                priority=rng.randrange(3),
                deadline=0.001 if hopeless else None,
            )
            task = asyncio.create_task(engine.speak(request))
            if rng.random() < 0.25:
                await asyncio.sleep(rng.random() * 2)
                task.cancel()
            try:
                result = await task
            except asyncio.CancelledError:
                counts["cancelled"] += 1
                return
            if result.error is None:
                assert torch.isfinite(result.audio).all()
                counts["finished"] += 1
            elif hopeless and isinstance(result.error, DeadlineError):
                counts["failed as asked"] += 1
            else:
                counts["failed"] += 1
                failures.append(str(result.error))

        async def worker() -> None:
            while time.monotonic() < end:
                await one()

        async def watch() -> None:
            while time.monotonic() < end:
                await asyncio.sleep(1)
                samples.append(memory(tts.device))

        await asyncio.gather(watch(), *(worker() for _ in range(TASKS_AT_ONCE)))
        for _ in range(600):
            stats = engine.stats()
            if not stats.unfinished:
                break
            await asyncio.sleep(0.1)

    warm = samples[int(len(samples) * WARM_UP_SHARE) :]
    third = max(1, len(warm) // 3)
    growth = {key: round(max(s[key] for s in warm[-third:]) / max(s[key] for s in warm[:third]), 4) for key in warm[0]}
    report = {
        "seconds": options.seconds,
        "requests": counts,
        "failures": failures[:20],
        "audio s": round(stats.audio_seconds, 1),
        "unfinished": stats.unfinished,
        "KV blocks held": stats.kv_blocks_in_use,
        "growth after warm-up": growth,
        "last MiB": samples[-1],
        "samples": samples[:: max(1, len(samples) // 60)],
    }
    report["passed"] = (
        not stats.unfinished
        and not stats.kv_blocks_in_use
        and not counts["failed"]
        and all(g <= GROWTH_ALLOWED for g in growth.values())
    )
    return report


def memory(device: torch.device) -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    found = {"host": pages * resource.getpagesize() / 2**20}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["device"] = (total - free) / 2**20  # of all processes: a leak of ours shows in it too
    return found


if __name__ == "__main__":
    main()
