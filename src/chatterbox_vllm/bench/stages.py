"""T3 alone and S3Gen alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from chatterbox_vllm.engine.request import TOKENS_PER_SECOND, SpeechParameters
from chatterbox_vllm.engine.to_speak import TokensToSpeak
from chatterbox_vllm.tts import ChatterboxTTS

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it does so once more, to be quite sure of it."
Row = dict[str, Any]


def t3_rows(tts: ChatterboxTTS, batches: Sequence[int], tokens: int, repeats: int) -> list[Row]:
    """Tokens a second at each batch size, with the published sampling, up to `tokens` a request.

    Synthetic weights hardly ever draw the end of speech. A trained model does; the batch is smaller from there on, and
    the tokens that were spoken are what counts.
    """
    scheduler, talker = tts.lend_scheduler()
    try:
        parameters = SpeechParameters(max_tokens=tokens)
        prompt, values = scheduler.preparation.prompts.prompt_of(SENTENCE, tts.voice, parameters)

        def run(batch: int) -> float:
            for i in range(batch):
                talker.add(f"bench-{i}", prompt, values.sampling, seed=i)
            spoken, start = 0, time.perf_counter()
            while talker.unfinished:
                spoken += sum(len(output.token_ids) for output in talker.step())
            return spoken / (time.perf_counter() - start)

        return [{"stage": "T3", "batch": b, **_spread("tokens/s", partial(run, b), repeats)} for b in batches]
    finally:
        tts.return_scheduler()


def s3gen_rows(
    tts: ChatterboxTTS, batches: Sequence[int], lengths: Sequence[float], steps: int, repeats: int
) -> list[Row]:
    """Times real time at each batch size and speech length (seconds), with the voice in use as the reference."""
    stage, voice = tts.s3gen_stage, tts.voice
    rows = []
    for seconds in lengths:
        count = round(seconds * TOKENS_PER_SECOND)
        tokens = tuple(int(t) for t in torch.randint(0, 6561, (count,), generator=torch.Generator().manual_seed(0)))

        def run(batch: int, tokens: tuple[int, ...] = tokens, seconds: float = seconds) -> float:
            work = [TokensToSpeak(tokens, voice, steps, seed=i) for i in range(batch)]
            start = time.perf_counter()
            for begin in range(0, batch, stage.max_batch_size):
                for outcome in stage.run(work[begin : begin + stage.max_batch_size]):
                    if isinstance(outcome, Exception):
                        raise outcome
            return batch * seconds / (time.perf_counter() - start)

        for batch in batches:
            spread = _spread("x real time", partial(run, batch), repeats)
            rows.append({"stage": "S3Gen", "batch": batch, "speech s": seconds, **spread})
    return rows


def _spread(unit: str, measure: Callable[[], float], repeats: int) -> Row:
    """Runs once to warm up, then `repeats` times."""
    measure()
    return _summary(unit, [measure() for _ in range(repeats)])


def _summary(unit: str, values: list[float]) -> Row:
    return {
        "unit": unit,
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }
