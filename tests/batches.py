"""What tests of batches share: a model's double, and what is in a folder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm.batch.folder import Folder
from chatterbox_vllm.batch.rows import Input
from chatterbox_vllm.batch.run import Batch, Summary
from chatterbox_vllm.batch.voices import RowVoices
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest, SpeechResult
from chatterbox_vllm.errors import AudioError, GenerationError
from tests.fakes import a_voice

RUN = {"input": "1", "seed": 5, "parameters": {"temperature": 0.8}}


class FakeSpeaker:
    """Speaks a text as a tone of its seed, out of order; dies after `lives` results."""

    sr = 24_000

    def __init__(self, lives: float = float("inf")):
        self.conds: Any = a_voice()
        self.settings: dict[str, Any] = {}
        self.lives = lives
        self.enrolled: list[Path] = []
        self.loudness: list[bool | None] = []
        self.spoken: list[str] = []
        self.most_ahead = 0

    def enrol(self, path: Any, norm_loudness: bool | None = None) -> Any:
        self.enrolled.append(Path(path))
        self.loudness.append(norm_loudness)
        if "bad" in str(path):
            raise AudioError(f"{path}: not audio")
        return a_voice()

    def run(self, requests: Iterable[SpeechRequest]) -> Iterator[SpeechResult]:
        ahead: list[tuple[int, SpeechRequest]] = []
        source = enumerate(requests)
        while True:
            while len(ahead) < 4 and (entry := next(source, None)) is not None:
                ahead.append(entry)
            if not ahead:
                return
            index, request = ahead.pop(random.randrange(len(ahead)))
            if self.lives <= 0:
                raise KeyboardInterrupt
            self.lives -= 1
            yield self._speak(index, request)

    def _speak(self, index: int, request: SpeechRequest) -> SpeechResult:
        seed = request.parameters.seed
        assert seed is not None
        self.spoken.append(request.text)
        if "fail" in request.text:
            return SpeechResult(index, str(index), index, seed, error=GenerationError("could not\nspeak"))
        audio = torch.sin(torch.arange(2400) * (0.01 + seed % 100 / 1000)) * 0.5
        if "nan" in request.text:
            audio[3] = float("nan")
        reason: Any = "length" if "long" in request.text else "stop"
        return SpeechResult(index, str(index), index, seed, audio=audio, speech_tokens=(1,), finish_reason=reason)


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def speak(
    source: Path,
    out: Path,
    speaker: FakeSpeaker | None = None,
    run: dict[str, Any] = RUN,
    engine: dict[str, Any] | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    norm_loudness: bool | None = None,
    own: Mapping[str, Path] | None = None,
    **parameters: Any,
) -> Summary:
    with Input(str(source)) as rows, Folder(out) as folder:
        folder.begin(folder.open(run, rows.check(), overwrite, retry_failed), engine)
        settings = SpeechParameters(seed=5, **parameters)
        speaker = speaker or FakeSpeaker()
        voices = RowVoices(rows.directory, own or {}, None)
        return Batch(rows, folder, speaker, settings, voices, None, ".wav", norm_loudness=norm_loudness).run()


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def audio_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.wav")}
