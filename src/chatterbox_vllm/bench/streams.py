"""Streams: how soon the first audio comes, whether listeners ever wait for more, and which threads are busy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatterbox_vllm.bench.end_to_end import requests_of
from chatterbox_vllm.bench.limited import limits_meant
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND, AudioChunk, SpeechParameters, SpeechRequest
from chatterbox_vllm.serving.async_engine import AsyncChatterbox
from chatterbox_vllm.tts import ChatterboxTTS

Row = dict[str, Any]
_TICKS = os.sysconf("SC_CLK_TCK")  # of CPU time a second


@dataclass(frozen=True)
class _Heard:
    """What one listener heard: seconds to the first audio, of audio, of all; and of waiting for more in between."""

    first: float
    audio: float
    total: float
    waited: float


def stream_rows(
    tts: ChatterboxTTS,
    counts: Sequence[int],
    text: str,
    language: str | None,
    tokens: int,
    repeats: int,
    listening: bool = False,
) -> list[Row]:
    """A row for each number of listeners.

    Without `listening` all begin at once, and each asks for the next text as soon as one is over: the engine has always
    something to do. With it they begin one after the other, within the time that a text takes to hear, and each hears a
    text to its end before it asks for the next: so many people who listen.

    Args:
        language: of the text, see `SpeechRequest`.
        tokens: most speech tokens of a text.
        repeats: texts of each listener after the first, which warms up.
    """

    async def one(engine: AsyncChatterbox, seed: int) -> _Heard:
        request = SpeechRequest(text, tts.voice, SpeechParameters(max_tokens=tokens, seed=seed), language=language)
        heard = await _hear(engine, request)
        if listening:
            await asyncio.sleep(heard.first + heard.waited + heard.audio - heard.total)
        return heard

    async def listener(engine: AsyncChatterbox, number: int, after: float) -> list[_Heard]:
        await asyncio.sleep(after)
        return [await one(engine, (repeats + 1) * number + n) for n in range(repeats + 1)][1:]

    async def main(count: int) -> tuple[list[_Heard], float, dict[str, float]]:
        apart = tokens / TOKENS_PER_SECOND / count if listening else 0.0
        async with AsyncChatterbox(tts) as engine:
            start, before = time.perf_counter(), _cpu_seconds()
            found = await asyncio.gather(*(listener(engine, n, n * apart) for n in range(count)))
            took, after = time.perf_counter() - start, _cpu_seconds()
        busy = {name: round((after[name] - before[name]) / took, 2) for name in after}
        return [heard for own in found for heard in own], took, {name: share for name, share in busy.items() if share}

    rows = []
    for count in counts:
        with limits_meant():
            heard, took, busy = asyncio.run(main(count))
        firsts = sorted(one.first for one in heard)
        rows.append(
            {
                "stage": "listeners" if listening else "streams",
                "batch": count,
                "unit": "s to first audio",
                "median": round(statistics.median(firsts), 4),
                "p95": round(firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))], 4),
                "max": round(firsts[-1], 4),
                "share of all": round(statistics.median(one.first / one.total for one in heard), 3),
                "late": sum(one.waited > 0 for one in heard),
                "of": len(heard),
                "longest wait": round(max(one.waited for one in heard), 4),
                "x real time": round(sum(one.audio for one in heard) * (repeats + 1) / repeats / took, 2),
                "cores busy, by thread": busy,
            }
        )
    return rows


def streamed_text_row(
    tts: ChatterboxTTS, text: str, language: str | None, synthetic: bool, steps: int, repeats: int
) -> Row:
    """The work of `end_to_end_row`, all of its chunks at once as well, but each is a stream that nobody waits to hear.

    Args: as there.
    """
    requests = requests_of(tts, text, language, synthetic, steps)

    async def main() -> list[tuple[list[_Heard], float]]:
        runs = []
        async with AsyncChatterbox(tts) as engine:
            for _ in range(repeats + 1):
                start = time.perf_counter()
                found = await asyncio.gather(*(_hear(engine, request) for request in requests))
                runs.append((found, time.perf_counter() - start))
        return runs[1:]

    with limits_meant() if synthetic else contextlib.nullcontext():
        runs = asyncio.run(main())
    spoken = [sum(one.audio for one in found) for found, _ in runs]
    speeds = [round(audio / took, 1) for audio, (_, took) in zip(spoken, runs, strict=True)]
    return {
        "stage": "end to end, in streams",
        "words": len(text.split()),
        "chunks": len(requests),
        "runs": repeats,
        "audio s": round(statistics.median(spoken), 1),
        "elapsed s": round(statistics.median(took for _, took in runs), 2),
        "x real time": statistics.median(speeds),
        "x real time, each": speeds,
        "first audio s, median": round(statistics.median(one.first for found, _ in runs for one in found), 3),
    }


async def _hear(engine: AsyncChatterbox, request: SpeechRequest) -> _Heard:
    """A request as a stream, to its end."""
    start = time.perf_counter()
    first = waited = audio = 0.0
    async with contextlib.aclosing(engine.generate(request, stream=True)) as events:
        async for event in events:
            now = time.perf_counter() - start
            if isinstance(event, AudioChunk):
                first = first or now
                waited = max(waited, now - first - audio)
                audio += len(event.audio) / engine.tts.sr
    return _Heard(first, audio, time.perf_counter() - start, waited)


def _cpu_seconds() -> defaultdict[str, float]:
    """CPU time of this process's threads so far, by name; of those that Python did not start under "other"."""
    named = {thread.native_id: re.sub(r"[_-]\d.*$", "", thread.name) for thread in threading.enumerate()}
    found: defaultdict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            # Behind the name, which may hold anything, in brackets: utime and stime are the 12th and the 13th.
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
            found[named.get(int(task.name), "other")] += (int(fields[11]) + int(fields[12])) / _TICKS
    return found
