"""Speaks the rows of an input that are still open in a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.batch.folder import Folder
from chatterbox_vllm.batch.reading import Reading
from chatterbox_vllm.batch.rows import Input, Row
from chatterbox_vllm.batch.voices import RowVoices
from chatterbox_vllm.engine.request import MAX_SEED, SpeechParameters, SpeechRequest, SpeechResult
from chatterbox_vllm.errors import AudioError, ChatterboxError, ConfigError, GenerationError, OutputError
from chatterbox_vllm.voices.voice import Voice

# Encoding and syncing wait for the disk and leave the interpreter free: the engine goes on meanwhile.
_WRITERS = 4
# Most finished waves that wait to be written.
_WAITING_WAVES = 16
# Voices that failed, so that one that many rows name is not decoded for each.
_BAD_VOICES = 64


class Speaker(Protocol):
    """What a batch needs of `ChatterboxTTS`."""

    sr: int
    conds: Voice | None
    settings: dict[str, Any]

    def enrol(self, path: str | os.PathLike[str], norm_loudness: bool | None = None) -> Voice: ...
    def run(self, requests: Iterable[SpeechRequest]) -> Iterator[SpeechResult]: ...


@dataclass
class Summary:
    """What became of a run.

    Attributes:
        rows: of the input.
        earlier: rows that were done before this process began.
        spoken: by this process.
        failed: rows that have failed, those of earlier included.
        cut_off: by this process, rows that reached `max_tokens` without end of speech.
        seconds: of audio that this process spoke.
        wall: seconds that it took, without loading.
    """

    rows: int
    earlier: int
    spoken: int = 0
    failed: int = 0
    cut_off: int = 0
    seconds: float = 0.0
    wall: float = 0.0


def fault_of(row: Row, voices: RowVoices) -> str | None:
    """Why a row cannot be spoken, as far as it is known without the model; or None."""
    if row.error is not None:
        return row.error
    try:
        if row.voice is not None:
            voices.find(row.voice)
    except ChatterboxError as error:
        return str(error)
    return None


def tell_faults(source: Input, folder: Folder, voices: RowVoices) -> set[int]:
    """Say on standard error which open rows cannot be spoken, and why, before a model is loaded.

    Returns:
        Their indices.
    """
    faulty = set()
    for row in source.rows():
        if folder.done[row.index] == Folder.OPEN and (fault := fault_of(row, voices)):
            faulty.add(row.index)
            _tell(row, fault)
    return faulty


def _tell(row: Row, message: str) -> None:
    tqdm.write(f"chatterbox-vllm: {row}: {message}", file=sys.stderr)


class Batch:
    """One process's work on a folder that is open and begun.

    Args:
        speaker: the model; None where all open rows are known to be faulty.
        parameters: of rows that set none; row i has its seed + i.
        voices: those that rows name.
        voice: reference clip or saved voice of rows that name none; None is the model's own voice.
        suffix: of the audio files, such as ".wav".
        told: rows whose faults `tell_faults` has told.
        reading: None is the usual way.
        norm_loudness: of clips, where a row does not say; None is the model's own way.
    """

    def __init__(
        self,
        source: Input,
        folder: Folder,
        speaker: Speaker | None,
        parameters: SpeechParameters,
        voices: RowVoices,
        voice: Path | None,
        suffix: str,
        told: Collection[int] = (),
        reading: Reading | None = None,
        norm_loudness: bool | None = None,
    ):
        self.source = source
        self.folder = folder
        self.speaker = speaker
        self.parameters = parameters
        self.voices = voices
        self.voice = voice
        self.suffix = suffix
        self.reading = reading or Reading()
        self.norm_loudness = norm_loudness
        self.told = told
        done = len(folder.done) - folder.done.count(Folder.OPEN)
        self.summary = Summary(len(folder.done), done, failed=folder.done.count(Folder.FAILED))
        # Rows that the engine has, by their place among the requests; it takes a bounded number ahead.
        self._taken: dict[int, tuple[Row, SpeechParameters]] = {}
        self._bad_voices: OrderedDict[tuple[Path, bool | None], str] = OrderedDict()

    def run(self) -> Summary:
        """Speak all open rows; failures go to the manifest and to standard error.

        Raises:
            OutputError: the folder cannot be written. What is done stays done.
            ConfigError: the input changed while it was read.
        """
        self._start = time.monotonic()
        waiting: deque[tuple[dict[str, Any], Future[Any]]] = deque()
        with (
            tqdm(total=self.summary.rows, initial=self.summary.earlier, unit="row", disable=None) as self._bar,
            ThreadPoolExecutor(_WRITERS, thread_name_prefix="write-audio") as writers,
        ):
            results = self._results()
            try:
                for result in results:
                    entry = self._entry_of(result)
                    if entry is not None:
                        path = self.folder.path / entry["file"]
                        waiting.append((entry, writers.submit(write_audio, path, result.audio, self._rate)))
                    while waiting and (len(waiting) > _WAITING_WAVES or waiting[0][1].done()):
                        self._note(*waiting.popleft())
                while waiting:
                    self._note(*waiting.popleft())
            except BaseException:
                writers.shutdown(cancel_futures=True)
                # Files that are whole by now need not be made again.
                with contextlib.suppress(OutputError):
                    for entry, written in waiting:
                        if not written.cancelled() and written.exception() is None:
                            self.folder.add(entry)
                raise
            finally:
                # While the model is still there: what is left undone is dropped.
                results.close()
        self.summary.wall = time.monotonic() - self._start
        return self.summary

    def _results(self) -> Generator[SpeechResult, None, None]:
        if self.speaker is not None:
            self._rate = self.speaker.sr
            yield from self.speaker.run(self._requests())
        elif any(True for _ in self._requests()):
            raise ConfigError(f"{self.source.name}: rows that could not be spoken now can; start again")

    def _entry_of(self, result: SpeechResult) -> dict[str, Any] | None:
        """The manifest's line of a result whose audio is to be written; a failure is noted here, and None."""
        row, parameters = self._taken.pop(result.index)
        fault: ChatterboxError
        if result.audio is None:
            fault = result.error or GenerationError("nothing was spoken")
        elif not np.isfinite(np.asarray(result.audio)).all():
            # Known before it is written, as a failure to write is the folder's fault and not the row's.
            fault = GenerationError(f"the audio holds values that are not finite numbers (seed {result.seed})")
        else:
            return self._entry(row, parameters, result) | {
                "file": f"{row.id}{self.suffix}",
                "duration": len(result.audio) / self._rate,
            }
        self._fail(row, fault, parameters, result)
        return None

    def _requests(self) -> Iterator[SpeechRequest]:
        place = 0
        for row in self.source.rows():
            if self.folder.done[row.index] != Folder.OPEN:
                continue
            parameters = None
            try:
                if fault := fault_of(row, self.voices):
                    raise ConfigError(fault)
                seed = (self.parameters.seed or 0) + row.index
                parameters = replace(self.parameters, **{"seed": seed % (MAX_SEED + 1), **row.parameters})
                reading = self.reading if row.language is None else replace(self.reading, language=row.language)
                request = SpeechRequest(row.text, self._voice(row), parameters, **vars(reading))
            except ChatterboxError as error:
                self._fail(row, error, parameters)
                continue
            self._taken[place] = row, parameters
            place += 1
            yield request

    def _voice(self, row: Row) -> Voice:
        """The row's own clip or saved voice, the batch's, or the model's own. `Speaker.enrol` keeps those in use."""
        assert self.speaker is not None
        path = self.voice if row.voice is None else self.voices.find(row.voice)
        if path is None:
            if self.speaker.conds is None:
                raise ConfigError(
                    "the model has no voice of its own: name a reference clip in the row, or with --voice"
                )
            return self.speaker.conds
        asked = path, self.norm_loudness if row.norm_loudness is None else row.norm_loudness
        if asked in self._bad_voices:
            raise AudioError(self._bad_voices[asked])
        try:
            return self.speaker.enrol(*asked)
        except ChatterboxError as error:
            self._bad_voices[asked] = str(error)
            if len(self._bad_voices) > _BAD_VOICES:
                self._bad_voices.popitem(last=False)
            raise

    def _entry(self, row: Row, parameters: SpeechParameters | None, result: SpeechResult | None) -> dict[str, Any]:
        """A line of the manifest, as of a row without audio."""
        values = asdict(parameters) if parameters else {}
        seed = values.pop("seed", None)
        return {
            "id": row.id,
            "index": row.index,
            "file": None,
            "text_hash": hashlib.blake2b(row.text.encode(), digest_size=16).hexdigest() if row.text else None,
            "voice": row.voice,
            "language": result.language if result else row.language,
            "parameters": values,
            "seed": seed,
            "duration": None,
            "finish_reason": result.finish_reason if result else None,
            "timings": {k: round(v, 4) for k, v in asdict(result.timings).items()} if result else None,
            "error": None,
        }

    def _fail(
        self,
        row: Row,
        error: ChatterboxError,
        parameters: SpeechParameters | None = None,
        result: SpeechResult | None = None,
    ) -> None:
        message = " ".join(str(error).split())
        self.folder.add(self._entry(row, parameters, result) | {"error": message})
        self.summary.failed += 1
        if row.index not in self.told:
            _tell(row, message)
        self._bar.update()

    def _note(self, entry: dict[str, Any], written: Future[Any]) -> None:
        """A row's file is there: so say the manifest and the bar."""
        try:
            written.result()
        except OutputError as error:
            raise OutputError(
                f"{error}. What is done stays done: the same command, without --overwrite, goes on from there"
            ) from error
        self.folder.add(entry)
        self.summary.spoken += 1
        self.summary.seconds += entry["duration"]
        self.summary.cut_off += entry["finish_reason"] == "length"
        seconds = self.summary.seconds
        speed = seconds / (time.monotonic() - self._start)
        self._bar.set_postfix_str(f"{seconds:.0f} s of audio, {speed:.1f}x real time", refresh=False)
        self._bar.update()
