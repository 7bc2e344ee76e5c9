"""What one model did with a plan, on disk: facts as JSON, arrays beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from typing_extensions import Self

from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.setup.probe import CountedBy
from chatterbox_vllm.voices.voice import Voice

FACTS = "facts.json"


@dataclass
class CaseFacts:
    """One case as a model spoke it, in the repeat that counts.

    Attributes:
        speech_tokens: what its own T3 said, codebook ids only.
        finish_reason: "stop", "length", or None after a failure.
        seconds: of its own audio.
        error: why it was not spoken.
        s3gen_error: why the baseline's tokens could not be voiced.
        other_troubles: `trouble` of each other repeat that had one.
    """

    index: int
    speech_tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    seconds: float = 0.0
    error: str | None = None
    s3gen_error: str | None = None
    other_troubles: list[str] = field(default_factory=list)

    @property
    def trouble(self) -> str | None:
        """What went wrong: no audio, or cut off before the model came to an end."""
        if self.error is not None:
            return f"not spoken: {self.error}"
        if self.finish_reason != "stop":
            return f"cut off after {len(self.speech_tokens)} speech tokens ({self.finish_reason})"
        return None

    @property
    def troubles(self) -> list[str]:
        """What went wrong in all repeats; one entry is one failed request."""
        return ([] if self.trouble is None else [self.trouble]) + self.other_troubles


@dataclass
class RunFacts:
    """One model's run.

    Attributes:
        model: where it lies.
        name: what its user called it.
        machine: `setup.provenance.provenance` and the settings in force.
        load_seconds: from nothing to a model that speaks.
        speaking_seconds: of all cases together, after one to warm up, in the repeat that counts; None where every
            repeat had a case that was not spoken, as what fails at once takes no time.
        repeats: how often all cases were spoken.
        peak_device_bytes: that the process held on the card while loading and running; None on a CPU.
        peak_host_bytes: the process's largest resident size.
        enrolments: clips enrolled, by file; None, or the error.
        counted_by: who counted `peak_device_bytes`, see `setup.probe.Usage`.
    """

    model: str
    name: str
    options: dict[str, Any]
    machine: dict[str, Any]
    load_seconds: float = 0.0
    speaking_seconds: float | None = 0.0
    peak_device_bytes: int | None = None
    peak_host_bytes: int = 0
    cases: list[CaseFacts] = field(default_factory=list)
    enrolments: dict[str, str | None] = field(default_factory=dict)
    repeats: int = 1
    counted_by: CountedBy | None = None

    @property
    def failure_rate(self) -> float:
        """The share of requests, of all repeats, that failed."""
        return sum(len(case.troubles) for case in self.cases) / (len(self.cases) * self.repeats)

    @property
    def audio_seconds(self) -> float:
        return sum(case.seconds for case in self.cases)

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work for a second of audio; infinite where there is none, None where no repeat can be timed."""
        if self.speaking_seconds is None:
            return None
        return self.speaking_seconds / self.audio_seconds if self.audio_seconds else float("inf")


_FACTS: pydantic.TypeAdapter[RunFacts] = pydantic.TypeAdapter(RunFacts)


class Collection:
    """A directory that `collect` fills and `compare` reads.

    Arrays, by the case's index, all float32. Of the baseline's tokens: "logits" [positions, vocabulary], "mel" [frames,
    bins], "pitch" [frames] in Hz, "wave" [samples] at the baseline's pitch. Of the model's own: "speech" [samples].
    """

    def __init__(self, directory: Path):
        self.directory = directory

    def write_facts(self, facts: RunFacts) -> None:
        """Raises OutputError if the directory cannot be written."""
        self._writing(lambda: (self.directory / FACTS).write_bytes(_FACTS.dump_json(facts, indent=1) + b"\n"))

    def facts(self) -> RunFacts:
        """Raises CheckpointError if the collection was not finished, or is of another version."""
        try:
            return _FACTS.validate_json((self.directory / FACTS).read_bytes(), strict=True)
        except (OSError, pydantic.ValidationError) as error:
            raise CheckpointError(f"{self.directory}: no finished collection ({error}); collect it anew") from error

    def save(self, kind: str, index: int, array: np.ndarray) -> None:
        """Raises OutputError if the directory cannot be written."""
        self._writing(lambda: np.save(self._path(kind, index), array.astype(np.float32, copy=False)))

    def load(self, kind: str, index: int) -> np.ndarray | None:
        """The array, or None where the model made none."""
        path = self._path(kind, index)
        return np.load(path) if path.exists() else None

    def save_voices(self, voices: Sequence[Voice]) -> None:
        """The plan's voices, in its order. Raises OutputError if they cannot be written."""
        for i, voice in enumerate(voices):
            voice.save(self.voice_path(i))

    def voice_path(self, index: int, prefix: str = "voice") -> Path:
        """Of the plan's voices, or of those "enrolled" from its clips."""
        return self.directory / f"{prefix}-{index}.pt"

    def clip_path(self, index: int) -> Path:
        """A case's audio as a clip to enrol."""
        return self.directory / f"clip-{index}.wav"

    @classmethod
    def create(cls, directory: Path) -> Self:
        """An empty one.

        Raises:
            ConfigError: the directory holds something.
            OutputError: it cannot be made.
        """
        collection = cls(directory)
        collection._writing(lambda: directory.mkdir(parents=True, exist_ok=True))
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty, perhaps of an earlier evaluation; name another directory")
        return collection

    def _path(self, kind: str, index: int) -> Path:
        return self.directory / f"{kind}-{index}.npy"

    def _writing(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            raise OutputError(
                f"{self.directory}: the evaluation cannot be written ({error.strerror or error}); "
                "make room, or name another directory"
            ) from error
