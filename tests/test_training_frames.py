"""What training takes from audio is what inference takes, and pitch is right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training.codes import Codes, tokens_of
from training.data import Corpus
from training.frames import Features
from training.pitch import pitch_of

from chatterbox_vllm.audio.features import prompt_mel


def spoken(seconds: float, hertz: float, seed: int = 0) -> np.ndarray:
    """A buzz of many harmonics with noise in its last third, int16 at 24 kHz."""
    t = np.arange(int(24_000 * seconds)) / 24_000
    wave = sum(np.sin(2 * np.pi * hertz * k * t + k * k) / k for k in range(1, 20)) * 0.2
    noise = np.random.default_rng(seed).standard_normal(len(t)) * 0.05
    wave = np.where(np.arange(len(t)) < len(t) * 2 // 3, wave, noise)
    return (wave * 20_000).astype(np.int16)


def write_corpus(directory: Path, waves: list[np.ndarray]) -> Corpus:
    directory.mkdir(parents=True, exist_ok=True)
    rows, begin = [], 0
    for i, wave in enumerate(waves):
        rows.append(
            {"id": i, "speaker": i % 2, "text": "A b.", "phonemes": "ab", "begin": begin, "samples": len(wave)}
            | {"held_out": i == len(waves) - 1}
        )
        begin += len(wave)
    np.concatenate(waves).astype("<i2").tofile(directory / "audio.i16")
    (directory / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    speakers = [{"name": f"s{i}", "recipe": {}, "held_out": False} for i in range(2)]
    (directory / "speakers.json").write_text(json.dumps(speakers))
    return Corpus(directory)


def test_mels_are_those_of_enrolment(tmp_path: Path) -> None:
    waves = [spoken(1.003, 110), spoken(0.77, 210)]
    features = Features.of(write_corpus(tmp_path, waves), torch.device("cpu"), 80)
    begin = 0
    for wave, count in zip(waves, features.counts.tolist(), strict=True):
        assert count == tokens_of(len(wave))
        padded = np.zeros(count * 960, np.float32)
        padded[: len(wave)] = wave[: count * 960] / 32768
        expected = prompt_mel(torch.from_numpy(padded), 80)
        torch.testing.assert_close(features.mels[begin : begin + 2 * count].float(), expected, rtol=1e-3, atol=5e-3)
        np.testing.assert_array_equal(features.audio[begin * 480 : (begin + 2 * count) * 480].float() / 32768, padded)
        begin += 2 * count


@pytest.mark.parametrize("hertz", [82.0, 131.0, 233.0, 407.0])
def test_pitch_of_a_buzz(hertz: float) -> None:
    waves = [spoken(1.2, hertz), spoken(0.8, hertz, seed=1)]
    frames = [len(wave) // 480 for wave in waves]
    audio = torch.from_numpy(np.concatenate([wave[: n * 480] for wave, n in zip(waves, frames, strict=True)]))
    found = pitch_of(audio, frames)
    buzz = torch.cat([torch.arange(n) < n * 2 // 3 - 3 for n in frames])
    noise = torch.cat([torch.arange(n) > n * 2 // 3 + 3 for n in frames])
    errors = (torch.log2(found[buzz].clamp(min=1) / hertz).abs() * 12).sort().values
    assert errors[math.ceil(0.97 * len(errors)) - 1] < 0.2  # semitones
    assert (found[noise] == 0).float().mean() > 0.9


def test_codes_are_written_and_read(tmp_path: Path) -> None:
    codes = Codes(np.arange(5), np.array([2, 3]), np.ones((2, 4)), np.ones((2, 3)))
    codes.write(tmp_path)
    assert Codes.read(tmp_path).of(1).tolist() == [2, 3, 4]
    with pytest.raises(ValueError, match="4 tokens"):
        Codes(np.arange(5), np.array([2, 2]), np.ones((2, 4)), np.ones((2, 3)))


@pytest.mark.parametrize("samples", [24_000, 24_240, 24_961, 50_003, 83_219])
def test_tokens_are_as_many_as_the_tokenizer_makes(samples: int) -> None:
    from chatterbox_vllm.audio.resample import sinc_resample

    frames = len(sinc_resample(torch.zeros(samples), 24_000, 16_000)) // 160
    assert tokens_of(samples) == -(-frames // 4)
