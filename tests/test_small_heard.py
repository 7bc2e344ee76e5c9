"""What the small model says, heard by a recogniser: no word is lost where a text is cut, and pauses are where asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm.audio.features import RATE_24K
from chatterbox_vllm.audio.resample import resample
from chatterbox_vllm.evaluation import metrics
from chatterbox_vllm.evaluation.asr import load_recogniser
from chatterbox_vllm.text.split import split_text

# Common words, so that an error is one of the speech and not of the recogniser's spelling.
STORY = (
    "The old man walked slowly down to the river every morning. He carried a small wooden box under his arm, and he "
    "never told anyone what was inside. Children followed him sometimes, but they always turned back at the bridge. "
    "One day the box was left open on the grass. There was nothing in it except a letter, written a long time ago, "
    "and a photograph of a young woman who was laughing at the sea."
)


@pytest.fixture(scope="session")
def heard() -> Callable[[torch.Tensor], str]:
    """The words of a wave [1, n] at 24 kHz, by Whisper tiny.en."""
    recogniser = load_recogniser("tiny.en")
    return lambda wave: recogniser(resample(wave.numpy().reshape(-1), RATE_24K, metrics.RATE))


def test_a_text_in_pieces_is_said_whole(speaker: Any, heard: Callable) -> None:
    assert len(split_text(STORY)) > 1
    wave = speaker.generate(STORY, seed=3)
    errors, words = metrics.word_errors(STORY, heard(wave))
    assert errors <= 0.06 * words, heard(wave)
    assert 0.25 < wave.shape[-1] / RATE_24K / words < 0.55


def test_a_pause_is_between_the_words_that_it_was_written_between(speaker: Any, heard: Callable) -> None:
    first, second = "My brother lives in a house near the church.", "He has two dogs and a very large garden."
    wave = speaker.generate(f"{first} [pause:1.5s] {second}", seed=1)
    begin, end = longest_silence(wave)
    assert 1.4 < (end - begin) / RATE_24K < 2.4
    for part, text in ((wave[:, :begin], first), (wave[:, end:], second)):
        errors, words = metrics.word_errors(text, heard(part))
        assert errors <= 1, heard(part)


def test_another_voice_says_the_same_words(speaker: Any, heard: Callable) -> None:
    speaker.conds = speaker.builtin_voice("bm_george")
    text = "She closed the window because it was raining."
    errors, _ = metrics.word_errors(text, heard(speaker.generate(text, seed=5)))
    assert errors <= 1


def longest_silence(wave: torch.Tensor) -> tuple[int, int]:
    """First sample and end of the longest stretch that is 40 dB below the loudest 10 ms."""
    frame = RATE_24K // 100
    samples = wave.numpy().reshape(-1)
    level = np.abs(samples[: len(samples) // frame * frame]).reshape(-1, frame).max(1)
    quiet = np.flatnonzero(np.diff(np.concatenate([[0], level < level.max() / 100, [0]])))
    begin, end = max(zip(quiet[::2], quiet[1::2], strict=True), key=lambda run: run[1] - run[0])
    return int(begin) * frame, int(end) * frame
