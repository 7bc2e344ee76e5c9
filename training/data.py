"""A corpus on disk as the training scripts read it.

A corpus is a directory of three files:

- ``audio.i16``: all utterances one after the other, little-endian int16, mono, 24,000 Hz;
- ``utterances.jsonl``: an `Utterance` a line;
- ``speakers.json``: a list of `Speaker`; an utterance names its speaker by the index in this list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from chatterbox_vllm.errors import CheckpointError

RATE = 24_000
# The symbols that the teacher's English pronunciations use: punctuation, stress marks, phonemes. Kept in full for
# every corpus, so that a network which was trained on one corpus fits the next.
PHONEME_SYMBOLS = " !\"'(),-.:;?AIOQTWYabdefhijklmnpqrstuvwzæðŋɐɑɒɔəɛɜɡɪɹɾʃʊʌʒʔʤʧˈˌːθᵊᵻ—“”…"


class CorpusError(CheckpointError):
    """A corpus directory is missing a file, or its files do not belong together."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken sentence.

    Attributes:
        id: its number in the plan that the corpus was made from; unique in a corpus.
        speaker: index into `Corpus.speakers`.
        text: what is said, as written.
        phonemes: what is said, in the teacher's symbols, as they were given to the teacher.
        begin: its first sample in ``audio.i16``.
        samples: its length.
        held_out: whether its sentence or its speaker is kept for evaluation and never trained on.
        movement: how far the pitch moves from its mean, 1 as the teacher says it; 1.5 is half as far again.
    """

    id: int
    speaker: int
    text: str
    phonemes: str
    begin: int
    samples: int
    held_out: bool
    movement: float = 1.0

    @property
    def seconds(self) -> float:
        return self.samples / RATE


@dataclass(frozen=True, slots=True)
class Speaker:
    """One voice of a corpus; `recipe` says how the teacher makes it, and `held_out` speakers are never trained on."""

    name: str
    recipe: Mapping[str, Any]
    held_out: bool


class Corpus:
    """The utterances, speakers and audio of a corpus directory. The audio is mapped, not read, until it is asked for.

    Raises:
        CorpusError: a file is missing or damaged, or an utterance lies outside the audio or names no speaker.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.speakers: list[Speaker] = [Speaker(**row) for row in self._read("speakers.json")]
        self.utterances: list[Utterance] = [Utterance(**row) for row in self._read("utterances.jsonl")]
        path = self.directory / "audio.i16"
        size = path.stat().st_size if path.is_file() else 0
        self._check(size // 2)
        # An empty file cannot be mapped.
        self._audio = np.memmap(path, dtype="<i2", mode="r") if size else np.zeros(0, np.int16)

    def audio(self, index: int) -> np.ndarray:
        """The audio of `utterances[index]`: (samples,) int16, read-only, without a copy."""
        utterance = self.utterances[index]
        return self._audio[utterance.begin : utterance.begin + utterance.samples]

    @cached_property
    def phoneme_symbols(self) -> tuple[str, ...]:
        """All symbols that phonemes may use, in a fixed order; an own corpus's further symbols come last."""
        further = {symbol for utterance in self.utterances for symbol in utterance.phonemes} - set(PHONEME_SYMBOLS)
        return (*PHONEME_SYMBOLS, *sorted(further))

    @cached_property
    def training(self) -> list[int]:
        """The indices of all utterances that may be trained on."""
        return [i for i, utterance in enumerate(self.utterances) if not utterance.held_out]

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / name
        try:
            text = path.read_text(encoding="utf-8")
            return (
                json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.split("\n") if line]
            )
        except FileNotFoundError:
            raise CorpusError(f"{self.directory} is no corpus: it has no {name}") from None
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path} is damaged ({error}); make the corpus again") from None

    def _check(self, samples: int) -> None:
        for utterance in self.utterances:
            end = utterance.begin + utterance.samples
            if utterance.samples < 1 or utterance.begin < 0 or end > samples:
                raise CorpusError(
                    f"utterance {utterance.id} of {self.directory} is at samples {utterance.begin} to {end}, "
                    f"but audio.i16 has {samples}; make the corpus again"
                )
            if not 0 <= utterance.speaker < len(self.speakers):
                raise CorpusError(
                    f"utterance {utterance.id} of {self.directory} is by speaker {utterance.speaker}, "
                    f"but speakers.json has {len(self.speakers)}"
                )
