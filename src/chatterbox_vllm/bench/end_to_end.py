"""A whole text through the whole engine: the setting in which others publish their figures."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from chatterbox_vllm.bench.limited import limits_meant
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest
from chatterbox_vllm.setup.probe import BatchWatch, Probe, Stopwatch, Usage
from chatterbox_vllm.text.split import split_text
from chatterbox_vllm.tts import ChatterboxTTS

# Read English at 15 characters a second is 25 / 15 speech tokens a character.
TOKENS_PER_CHARACTER = 25 / 15


def end_to_end_row(
    tts: ChatterboxTTS,
    text: str,
    language: str | None,
    synthetic: bool,
    steps: int,
    on_result: Callable[[int, int], None] | None = None,
    repeats: int = 3,
) -> dict[str, Any]:
    """Speak a text, split into chunks, all submitted at once; once to warm up, then `repeats` times.

    Args:
        language: of the text, see `SpeechRequest`.
        synthetic: give each chunk as many speech tokens as reading it would take, for weights that do not know when to
            stop; otherwise chunks end where the model ends them.
        on_result: called with the number of finished chunks and of all, repeats included.

    Returns:
        medians over the repeats: x real time over everything and over the steady middle (from the first tenth of the
        audio to the last), time in each stage as a share of the whole (they overlap on a GPU), the device's busy share,
        peak memory; and x real time of each.
    """
    requests = requests_of(tts, text, language, synthetic, steps)
    done = itertools.count(1)
    tick = (lambda: None) if on_result is None else lambda: on_result(next(done), (repeats + 1) * len(requests))
    with limits_meant() if synthetic else nullcontext():
        runs = [_run(tts, requests, tick) for _ in range(repeats + 1)][1:]
    return {
        "stage": "end to end",
        "words": len(text.split()),
        "chunks": len(requests),
        "runs": repeats,
        "failed": [failure for run in runs for failure in run.failed],
        "audio s": _median(1, [run.audio for run in runs]),
        "elapsed s": _median(2, [run.elapsed for run in runs]),
        "x real time": _median(1, [run.audio / run.elapsed for run in runs]),
        "x real time, each": [round(run.audio / run.elapsed, 1) for run in runs],
        "x real time, steady": _median(1, [_steady(run.finished) for run in runs]),
        "first result s": _median(3, [run.finished[0][0] for run in runs]),
        "T3 share": _median(3, [run.talking / run.elapsed for run in runs]),
        "S3Gen share": _median(3, [run.voicing / run.elapsed for run in runs]),
        "GPU busy share": _median(3, [run.usage.gpu_busy_share for run in runs]),
        "peak device MiB": _mib([run.usage.peak_device_bytes for run in runs]),
        "device memory counted by": runs[-1].usage.counted_by,
        "peak host MiB": _mib([run.usage.peak_host_bytes for run in runs]),
    }


def requests_of(
    tts: ChatterboxTTS, text: str, language: str | None, synthetic: bool, steps: int
) -> list[SpeechRequest]:
    """One for each chunk of a text; see `end_to_end_row`."""
    chunks = [segment.text for segment in split_text(text)]
    return [
        SpeechRequest(
            chunk,
            tts.voice,
            SpeechParameters(seed=i, diffusion_steps=steps, max_tokens=most_tokens(chunk, synthetic)),
            language=language,
        )
        for i, chunk in enumerate(chunks)
    ]


@dataclass(frozen=True)
class _Run:
    """The text spoken once.

    Attributes:
        finished: when each chunk was finished, from the start, and how much audio it has; both in seconds.
        failed: chunks and their errors.
        talking, voicing: seconds that the stages worked.
    """

    finished: list[tuple[float, float]]
    failed: list[str]
    elapsed: float
    talking: float
    voicing: float
    usage: Usage

    @property
    def audio(self) -> float:
        return sum(seconds for _, seconds in self.finished)


def _run(tts: ChatterboxTTS, requests: Sequence[SpeechRequest], tick: Callable[[], None]) -> _Run:
    finished, failed = [], []
    with (
        Probe(tts.device) as probe,
        Stopwatch(tts.t3_stage, "step") as talking,
        BatchWatch(tts.s3gen_stage) as voicing,
    ):
        start = time.perf_counter()
        for result in tts.run(requests):
            finished.append((time.perf_counter() - start, result.samples / tts.sr))
            if result.error is not None:
                failed.append(f"{result.index}: {result.error}")
            tick()
        elapsed = time.perf_counter() - start
    return _Run(finished, failed, elapsed, talking.seconds, voicing.seconds, probe.usage)


def _median(digits: int, values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), digits) if known else None


def _mib(values: Sequence[int | None]) -> int | None:
    """The largest."""
    known = [value for value in values if value is not None]
    return max(known) >> 20 if known else None


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
