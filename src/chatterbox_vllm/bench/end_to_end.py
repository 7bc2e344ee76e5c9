"""A whole text through the whole engine: the setting in which others publish their figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest
from chatterbox_vllm.setup.probe import Probe, Stopwatch
from chatterbox_vllm.text.split import split_text
from chatterbox_vllm.tts import ChatterboxTTS

# Read English at 15 characters a second is 25 / 15 speech tokens a character.
TOKENS_PER_CHARACTER = 25 / 15


def end_to_end_row(
    tts: ChatterboxTTS,
    text: str,
    synthetic: bool,
    steps: int,
    on_result: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Speak a text, split into chunks, all submitted at once.

    Args:
        synthetic: give each chunk as many speech tokens as reading it would take, for weights that do not know when to
            stop; otherwise chunks end where the model ends them.
        on_result: called with the number of finished chunks and of all.

    Returns:
        x real time over everything and over the steady middle (from the first tenth of the audio to the last), time in
        each stage as a share of the whole (they overlap on a GPU), the device's busy share, peak memory.
    """
    chunks = [segment.text for segment in split_text(text)]
    requests = [
        SpeechRequest(
            chunk, tts.voice, SpeechParameters(seed=i, diffusion_steps=steps, max_tokens=most_tokens(chunk, synthetic))
        )
        for i, chunk in enumerate(chunks)
    ]
    finished: list[tuple[float, float]] = []
    failures = []
    with ExitStack() as stack:
        probe = stack.enter_context(Probe(tts.device))
        talking = stack.enter_context(Stopwatch(tts.t3_stage, "step"))
        voicing = stack.enter_context(Stopwatch(tts.s3gen_stage, "run"))
        start = time.perf_counter()
        for result in tts.run(requests):
            seconds = 0.0 if result.audio is None else len(result.audio) / tts.sr
            finished.append((time.perf_counter() - start, seconds))
            if result.error is not None:
                failures.append(f"{result.index}: {result.error}")
            if on_result is not None:
                on_result(len(finished), len(chunks))
        elapsed = time.perf_counter() - start
    audio = sum(seconds for _, seconds in finished)
    usage = probe.usage
    return {
        "stage": "end to end",
        "words": len(text.split()),
        "chunks": len(chunks),
        "failed": failures,
        "audio s": round(audio, 1),
        "elapsed s": round(elapsed, 2),
        "x real time": round(audio / elapsed, 1),
        "x real time, steady": round(_steady(finished), 1),
        "first result s": round(finished[0][0], 3),
        "T3 share": round(talking.seconds / elapsed, 3),
        "S3Gen share": round(voicing.seconds / elapsed, 3),
        "GPU busy share": None if usage.gpu_busy_share is None else round(usage.gpu_busy_share, 3),
        "peak device MiB": None if usage.peak_device_bytes is None else usage.peak_device_bytes >> 20,
        "peak host MiB": usage.peak_host_bytes >> 20,
    }


def most_tokens(chunk: str, synthetic: bool) -> int:
    """How many speech tokens a chunk may have: the published limit, or what reading it takes for synthetic weights."""
    return min(1000, max(25, math.ceil(len(chunk) * TOKENS_PER_CHARACTER))) if synthetic else 1000


def _steady(finished: list[tuple[float, float]]) -> float:
    """Audio per second between the results that end the first and the ninth tenth."""
    first, last = len(finished) // 10, (9 * len(finished)) // 10
    if last <= first:
        return sum(s for _, s in finished) / finished[-1][0]
    span = finished[last][0] - finished[first][0]
    return sum(seconds for _, seconds in finished[first + 1 : last + 1]) / max(span, 1e-9)
