"""Voices of clips: one enrolment a file, and memory that is bounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from chatterbox_vllm import AudioError, Voice
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.voices.library import ClipVoices

RATE = 16_000


class CountingEnroller:
    """Stands for `VoiceEnroller`: what it returns tells how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def enrol(self, wave: np.ndarray, rate: int) -> Voice:
        assert rate == RATE and len(wave) == RATE
        self.count += 1
        tokens = torch.full((25,), self.count)
        prompt = FlowPrompt(tokens, torch.zeros(50, 80), torch.zeros(192))
        return Voice(SpeakerConditioning(torch.zeros(1, 256), tokens), prompt)


def clip(path: Path, loudness: float = 0.1) -> Path:
    write_audio(path, np.full(RATE, loudness, np.float32), RATE)
    return path


def test_a_file_is_enrolled_once_until_it_changes(tmp_path: Path) -> None:
    voices = ClipVoices(CountingEnroller())
    path = clip(tmp_path / "a.wav")
    first = voices.voice(path)
    assert voices.voice(tmp_path / "." / "a.wav") is first
    path.unlink()
    write_audio(path.with_suffix(".flac"), np.full(RATE, 0.2, np.float32), RATE)
    path.with_suffix(".flac").rename(path)
    assert voices.voice(path) is not first and len(voices.kept) == 2


def test_the_ones_used_last_stay_within_the_bound(tmp_path: Path) -> None:
    enroller = CountingEnroller()
    voices = ClipVoices(enroller)
    paths = [clip(tmp_path / f"{i}.wav") for i in range(4)]
    first = voices.voice(paths[0])
    voices.kept.most_bytes = 2 * voices.kept.bytes
    voices.voice(paths[1])
    voices.voice(paths[0])
    voices.voice(paths[2])  # 1 goes
    assert len(voices.kept) == 2 and voices.voice(paths[0]) is first and enroller.count == 3
    voices.kept.most_bytes = 1
    assert voices.voice(paths[3]) is voices.voice(paths[3]) and len(voices.kept) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"gone\.wav: cannot be read"):
        ClipVoices(CountingEnroller()).voice(tmp_path / "gone.wav")
