"""A corpus of buzzing sounds for tests of training: every letter is a tone of its own, every speaker a pitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from training.corpus.store import CorpusWriter
from training.data import RATE, Speaker

WORDS = ["bad", "dad", "fab", "mad", "sad", "gab", "lab", "tab", "nab", "jab"]


def write_corpus(directory: Path, sentences: int = 12, speakers: int = 3) -> Path:
    """The last sentence is held out, and so is the last speaker."""
    random = np.random.default_rng(0)
    voices = [Speaker(f"voice {i}", {}, held_out=i == speakers - 1) for i in range(speakers)]
    with CorpusWriter(directory, voices) as writer:
        for i in range(sentences):
            speaker = i % speakers
            words = [str(word) for word in random.choice(WORDS, 2)]
            writer.add(
                id=i,
                speaker=speaker,
                text=" ".join(words),
                phonemes=" ".join(words),
                held_out=voices[speaker].held_out or i >= sentences - speakers,
                audio=_sound("".join(words), 100 + 60 * speaker, random),
            )
    return directory


def _sound(letters: str, pitch: float, random: np.random.Generator) -> np.ndarray:
    """120 ms a letter, int16 at 24 kHz."""
    t = np.arange(int(0.12 * RATE)) / RATE
    pieces = []
    for letter in letters:
        formant = 300 + 90 * (ord(letter) - ord("a"))
        wave = sum(
            np.exp(-(((h * pitch - formant) / 200) ** 2)) * np.sin(2 * np.pi * h * pitch * t) for h in range(1, 30)
        )
        pieces.append(wave * np.hanning(len(t)) + 0.003 * random.standard_normal(len(t)))
    wave = np.concatenate(pieces)
    return (12_000 * wave / np.abs(wave).max()).astype(np.int16)
