"""Writes a corpus directory, utterance by utterance; what was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import numpy as np
from typing_extensions import Self

from training.data import CorpusError, Speaker, Utterance


class CorpusWriter:
    """Appends utterances to the corpus in `directory`, which it makes or goes on with.

    The audio of an utterance is written before its line, so a line always has its audio. Opening drops what an
    interrupted run left behind without one: a line that was cut off, and audio that no line names.

    Attributes:
        ids: the ids of the utterances that are written.
        samples: the length of all audio that is written.

    Raises:
        CorpusError: the directory holds a corpus of other speakers.
    """

    def __init__(self, directory: str | Path, speakers: Sequence[Speaker]):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep_speakers([asdict(speaker) for speaker in speakers])
        lines = self._keep_whole_lines()
        self.ids = {line["id"] for line in lines}
        self.samples = max((line["begin"] + line["samples"] for line in lines), default=0)
        self._lines = (self.directory / "utterances.jsonl").open("a", encoding="utf-8")
        self._audio = (self.directory / "audio.i16").open("ab")
        self._audio.truncate(2 * self.samples)

    def add(
        self, *, id: int, speaker: int, text: str, phonemes: str, held_out: bool, audio: np.ndarray,
        movement: float = 1.0,
    ) -> Utterance:  # fmt: skip
        """Appends one utterance; `audio` is (samples,) int16 at 24,000 Hz.

        Raises:
            CorpusError: the id is written already, or the audio is empty or not int16.
        """
        if id in self.ids:
            raise CorpusError(f"utterance {id} is in {self.directory} already")
        if audio.dtype != np.int16 or audio.ndim != 1 or not audio.size:
            raise CorpusError(f"utterance {id} has audio of shape {audio.shape} and type {audio.dtype}, not (n,) int16")
        utterance = Utterance(id, speaker, text, phonemes, self.samples, len(audio), held_out, movement)
        self._audio.write(audio.astype("<i2").tobytes())
        self._lines.write(json.dumps(asdict(utterance), ensure_ascii=False) + "\n")
        self.ids.add(id)
        self.samples += len(audio)
        return utterance

    def flush(self) -> None:
        self._audio.flush()
        self._lines.flush()

    def close(self) -> None:
        self._audio.close()
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def _keep_speakers(self, speakers: list[dict]) -> None:
        path = self.directory / "speakers.json"
        wanted = json.loads(json.dumps(speakers))
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) != wanted:
                raise CorpusError(f"{self.directory} is a corpus of other speakers; give an empty directory")
            return
        part = path.with_suffix(".part")
        part.write_text(json.dumps(wanted, ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)

    def _keep_whole_lines(self) -> list[dict]:
        path = self.directory / "utterances.jsonl"
        path.touch()
        blob = path.read_bytes()
        whole = blob[: blob.rfind(b"\n") + 1]
        held = (self.directory / "audio.i16").stat().st_size // 2 if (self.directory / "audio.i16").exists() else 0
        kept, size = [], 0
        for raw in whole.splitlines(keepends=True):
            line = json.loads(raw)
            if line["begin"] + line["samples"] > held:
                break
            kept.append(line)
            size += len(raw)
        os.truncate(path, size)
        return kept
