"""Streams: how soon the first audio comes, and whether listeners ever wait for more."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatterbox_vllm.engine.request import AudioChunk, SpeechParameters, SpeechRequest
from chatterbox_vllm.serving.async_engine import AsyncChatterbox
from chatterbox_vllm.tts import ChatterboxTTS

Row = dict[str, Any]


@dataclass(frozen=True)
class _Heard:
    """What one listener heard: seconds to the first audio, of audio, of all; and of waiting for more in between."""

    first: float
    audio: float
    total: float
    waited: float


def stream_rows(tts: ChatterboxTTS, counts: Sequence[int], text: str, tokens: int, repeats: int) -> list[Row]:
    """A row for each number of listeners, each of whom asks for the next text as soon as one is over.

    Args:
        tokens: most speech tokens of a text.
        repeats: texts of each listener after the first, which warms up.
    """

    async def one(engine: AsyncChatterbox, seed: int) -> _Heard:
        request = SpeechRequest(text, tts.voice, SpeechParameters(max_tokens=tokens, seed=seed))
        start = time.perf_counter()
        first = waited = audio = 0.0
        async with contextlib.aclosing(engine.generate(request, stream=True)) as events:
            async for event in events:
                now = time.perf_counter() - start
                if isinstance(event, AudioChunk):
                    first = first or now
                    waited = max(waited, now - first - audio)
                    audio += len(event.audio) / tts.sr
        return _Heard(first, audio, time.perf_counter() - start, waited)

    async def listener(engine: AsyncChatterbox, number: int) -> list[_Heard]:
        return [await one(engine, repeats * number + n) for n in range(repeats + 1)][1:]

    async def main(count: int) -> tuple[list[_Heard], float]:
        async with AsyncChatterbox(tts) as engine:
            start = time.perf_counter()
            found = await asyncio.gather(*(listener(engine, n) for n in range(count)))
            took = time.perf_counter() - start
        return [heard for own in found for heard in own], took

    rows = []
    for count in counts:
        heard, took = asyncio.run(main(count))
        firsts = sorted(one.first for one in heard)
        rows.append(
            {
                "stage": "streams",
                "batch": count,
                "unit": "s to first audio",
                "median": round(statistics.median(firsts), 4),
                "p95": round(firsts[min(len(firsts) - 1, int(0.95 * len(firsts)))], 4),
                "max": round(firsts[-1], 4),
                "share of all": round(statistics.median(one.first / one.total for one in heard), 3),
                "late": sum(one.waited > 0 for one in heard),
                "of": len(heard),
                "x real time": round(sum(one.audio for one in heard) * (repeats + 1) / repeats / took, 2),
            }
        )
    return rows
