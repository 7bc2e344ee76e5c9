"""Voices of files: clips and saved voices alike, one reading a file, and memory that is bounded."""

from __future__ import annotations

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from chatterbox_vllm import AudioError, CheckpointError, ConfigError, Voice
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.voices.files import FileVoices, check_voice_file

from .made_up_clips import babble

RATE = 16_000


def made_up_voice(token: int = 1) -> Voice:
    tokens = torch.full((25,), token)
    prompt = FlowPrompt(tokens, torch.zeros(50, 80), torch.zeros(192))
    return Voice(SpeakerConditioning(torch.full((1, 256), 1 / 16), tokens), prompt)


class CountingEnroller:
    """Stands for `VoiceEnroller`: what it returns tells how often it was asked."""

    config = ModelConfig()

    def __init__(self, seconds: float = 0.0) -> None:
        self.count = 0
        self.seconds = seconds

    def enrol(self, wave: np.ndarray, rate: int, norm_loudness: bool | None = None) -> Voice:
        assert rate == RATE and len(wave) == RATE
        self.count += 1
        time.sleep(self.seconds)
        return made_up_voice(self.count)

    def read(self, path: Path) -> Voice:
        return Voice.load(path, self.config)


def clip(path: Path, loudness: float = 0.1) -> Path:
    return write_audio(path, np.full(RATE, loudness, np.float32), RATE)


def test_a_file_is_enrolled_once_until_it_changes(tmp_path: Path) -> None:
    voices = FileVoices(CountingEnroller())
    path = clip(tmp_path / "a.wav")
    first = voices.voice(path)
    assert voices.voice(tmp_path / "." / "a.wav") is first
    path.unlink()
    clip(path.with_suffix(".flac"), 0.2).rename(path)
    assert voices.voice(path) is not first and len(voices.kept) == 2


def test_a_saved_voice_is_told_by_its_content(tmp_path: Path) -> None:
    enroller = CountingEnroller()
    voices = FileVoices(enroller)
    saved = tmp_path / "anna.wav"
    made_up_voice(7).save(saved)
    assert voices.voice(saved).key == made_up_voice(7).key and voices.voice(saved) is voices.voice(saved)
    assert enroller.count == 0
    named_like_a_voice = shutil.copy(clip(tmp_path / "clip.wav"), tmp_path / "clip.pt")
    assert voices.voice(named_like_a_voice).key == made_up_voice(1).key and enroller.count == 1


def test_a_saved_voice_of_another_model_is_refused(tmp_path: Path) -> None:
    enroller = CountingEnroller()
    enroller.config = ModelConfig(t3=T3Config(speaker_embedding_size=192))
    path = tmp_path / "anna.pt"
    made_up_voice().save(path)
    with pytest.raises(CheckpointError, match=r"anna\.pt: .*speaker_embedding has shape \[1, 256\], .* \[1, 192\]"):
        FileVoices(enroller).voice(path)
    with pytest.raises(CheckpointError, match=r"\[1, 192\]"):
        check_voice_file(path, enroller.config)
    check_voice_file(path)


def test_what_was_enrolled_has_its_loudness_already(tmp_path: Path) -> None:
    path = tmp_path / "anna.pt"
    made_up_voice().save(path)
    for ask in (FileVoices(CountingEnroller()).voice, lambda p, norm: check_voice_file(p, None, norm)):
        with pytest.raises(ConfigError, match=r"anna\.pt is a saved voice, .* leave norm_loudness=False out"):
            ask(path, False)


def test_files_are_checked_without_a_model(tmp_path: Path) -> None:
    check_voice_file(write_audio(tmp_path / "good.wav", babble(1), 24_000))
    for content, error, words in (
        (b"PK\x03\x04 and no more", CheckpointError, "damaged, or not a voice file"),
        (b"no audio in here", AudioError, "cannot be decoded"),
        (b"", AudioError, "is empty"),
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(error, match=rf"{tmp_path / 'bad'}: .*{words}"):
            check_voice_file(tmp_path / "bad")
    with pytest.raises(AudioError, match="digital silence"):
        check_voice_file(write_audio(tmp_path / "silent.wav", np.zeros(48_000), 24_000))
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "gone.wav": "cannot be read",
        "a\0b": "cannot be read",
        "pipe": "not a file",
        "": "not a file",
    }.items():
        with pytest.raises(AudioError, match=words):
            check_voice_file(tmp_path / name)


def test_the_ones_used_last_stay_within_the_bound(tmp_path: Path) -> None:
    enroller = CountingEnroller()
    voices = FileVoices(enroller)
    paths = [clip(tmp_path / f"{i}.wav") for i in range(4)]
    first = voices.voice(paths[0])
    voices.kept.most_bytes = 2 * voices.kept.bytes
    voices.voice(paths[1])
    voices.voice(paths[0])
    voices.voice(paths[2])  # 1 goes
    assert len(voices.kept) == 2 and voices.voice(paths[0]) is first and enroller.count == 3
    voices.kept.most_bytes = 1
    assert voices.voice(paths[3]) is voices.voice(paths[3]) and len(voices.kept) == 1


def test_requests_at_once_enrol_once(tmp_path: Path) -> None:
    enroller = CountingEnroller(seconds=0.2)
    voices = FileVoices(enroller)
    path = clip(tmp_path / "a.wav")
    start = threading.Barrier(8)

    def ask(_: int) -> Voice:
        start.wait()
        return voices.voice(path)

    with ThreadPoolExecutor(8) as pool:
        assert len({voice.key for voice in pool.map(ask, range(8))}) == 1
    assert enroller.count == 1
