"""The bar that a list of texts is spoken under."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tqdm import tqdm

from chatterbox_vllm.engine.request import SpeechResult


def with_progress(
    results: Iterator[SpeechResult], count: int, sample_rate: int, show: bool | None, unit: str = "text"
) -> Iterator[SpeechResult]:
    """The results, under a bar of items, seconds of audio and x real time.

    Args:
        count: how many there will be.
        unit: what each is the audio of.
        show: None does so for more than one, on a terminal.
    """
    disable = None if show is None and count > 1 else not show
    start, seconds = time.monotonic(), 0.0
    with tqdm(total=count, unit=unit, disable=disable) as bar:
        for result in results:
            if result.audio is not None:
                seconds += len(result.audio) / sample_rate
            speed = seconds / (time.monotonic() - start)
            bar.set_postfix_str(f"{seconds:.0f} s of audio, {speed:.1f}x real time", refresh=False)
            bar.update()
            yield result
