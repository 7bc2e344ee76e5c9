"""Gates: a bound for each figure, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomllib

from chatterbox_vllm.errors import ConfigError


@dataclass(frozen=True)
class GateKind:
    """What a gate judges.

    Attributes:
        bound: whether its threshold is the largest or the smallest value that passes.
        what: in words, for the report.
    """

    bound: Literal["maximum", "minimum"]
    unit: str
    what: str


KINDS: Mapping[str, GateKind] = {
    "t3_kl": GateKind("maximum", "nats", "T3: mean divergence of the next-token distribution"),
    "t3_top1": GateKind("minimum", "share", "T3: positions with the same likeliest token"),
    "t3_kl_late": GateKind("maximum", "nats", "T3: the same divergence beyond 10 s of speech"),
    "t3_top1_late": GateKind("minimum", "share", "T3: the same agreement beyond 10 s of speech"),
    "mel_distance": GateKind("maximum", "nats", "S3Gen, same tokens and noise: mean log-mel difference"),
    "pitch_error": GateKind("maximum", "cents", "S3Gen, same tokens and noise: mean pitch difference"),
    "spectral_distortion": GateKind("maximum", "%", "S3Gen, same tokens, noise and pitch: spectrogram difference"),
    "pesq": GateKind("minimum", "MOS", "S3Gen, same tokens, noise and pitch: PESQ, wide band"),
    "stoi": GateKind("minimum", "", "S3Gen, same tokens, noise and pitch: STOI"),
    "speaker_similarity": GateKind("minimum", "cosine", "same speaker to the voice encoder"),
    "xvector_similarity": GateKind("minimum", "cosine", "same speaker to the x-vector net"),
    "speech_sanity": GateKind("maximum", "share", "its own speech: cases that are no speech, beyond the baseline's"),
    "speech_duration": GateKind("maximum", "ratio", "its own speech: as long as the baseline's, mean ratio"),
    "speech_spectrum": GateKind("maximum", "nats", "its own speech: difference of average spectra, level included"),
    "speech_speaker": GateKind("minimum", "cosine", "its own speech: likeness to the voice, less the baseline's"),
    "enrolment_speaker": GateKind("minimum", "cosine", "enrolling a clip: same embedding for T3"),
    "enrolment_xvector": GateKind("minimum", "cosine", "enrolling a clip: same x-vector for the flow"),
    "speed": GateKind("minimum", "ratio", "speed over the baseline's"),
    "device_memory": GateKind("maximum", "ratio", "peak device memory over the baseline's"),
    "host_memory": GateKind("maximum", "ratio", "peak host memory over the baseline's"),
    "failures": GateKind("maximum", "share", "failed requests beyond the baseline's share"),
    "word_errors": GateKind("maximum", "share", "word error rate beyond the baseline's"),
}


@dataclass(frozen=True)
class Threshold:
    """The bound of one gate; a required gate that could not run leaves the evaluation incomplete."""

    bound: float
    required: bool = True


@dataclass(frozen=True)
class Measurement:
    """A figure, or why there is none."""

    value: float | None
    note: str = ""


class Status(Enum):
    """What became of a gate."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Judgement:
    """One gate's verdict."""

    name: str
    status: Status
    measurement: Measurement
    threshold: Threshold

    @property
    def kind(self) -> GateKind:
        return KINDS[self.name]


@dataclass(frozen=True)
class Verdict:
    """All gates together."""

    judgements: tuple[Judgement, ...]

    @property
    def exit_status(self) -> int:
        """0: every gate that is required ran, and none failed; 1: a gate failed; 2: a required gate could not run."""
        if any(j.status is Status.FAILED for j in self.judgements):
            return 1
        return 2 if self.missing else 0

    @property
    def missing(self) -> tuple[str, ...]:
        """Required gates that could not run."""
        return tuple(j.name for j in self.judgements if j.status is Status.NOT_RUN and j.threshold.required)

    @property
    def word(self) -> str:
        return ("passed", "failed", "incomplete")[self.exit_status]


def judge(measurements: Mapping[str, Measurement], thresholds: Mapping[str, Threshold]) -> Verdict:
    """A judgement for every gate of `thresholds`; one that was not measured is "not run", never "passed"."""
    found = []
    for name, threshold in thresholds.items():
        measurement = measurements.get(name, Measurement(None, "not measured"))
        found.append(Judgement(name, _status(KINDS[name], measurement, threshold), measurement, threshold))
    return Verdict(tuple(found))


def _status(kind: GateKind, measurement: Measurement, threshold: Threshold) -> Status:
    value = measurement.value
    if value is None:
        return Status.NOT_RUN
    if math.isnan(value):
        return Status.FAILED
    passed = value <= threshold.bound if kind.bound == "maximum" else value >= threshold.bound
    return Status.PASSED if passed else Status.FAILED


def load_thresholds(path: Path | None = None) -> dict[str, Threshold]:
    """The package's thresholds, with those of a TOML file of the same form in their place.

    Raises:
        ConfigError: the file cannot be read, names an unknown gate, or gives a bound that its gate does not have.
    """
    shipped = resources.files("chatterbox_vllm.evaluation").joinpath("thresholds.toml").read_text(encoding="utf-8")
    thresholds = _parse(shipped, "thresholds.toml", {})
    if path is None:
        return thresholds
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the thresholds in {path} cannot be read: {error}") from error
    return _parse(text, str(path), thresholds)


def _parse(text: str, where: str, defaults: dict[str, Threshold]) -> dict[str, Threshold]:
    try:
        tables = tomllib.loads(text)
    except ValueError as error:  # also of integers with more digits than Python reads
        raise ConfigError(f"{where}: not TOML ({error})") from error
    thresholds = dict(defaults)
    for name, table in tables.items():
        if name not in KINDS:
            raise ConfigError(f"{where}: unknown gate {name!r}; the gates are {', '.join(KINDS)}")
        thresholds[name] = _threshold(name, table, where, defaults.get(name))
    return thresholds


def _threshold(name: str, table: Any, where: str, default: Threshold | None) -> Threshold:
    side = KINDS[name].bound
    if not isinstance(table, dict) or set(table) - {side, "required"}:
        raise ConfigError(f"{where}: gate {name!r} takes a table of {side!r} and 'required', found {table!r}")
    given = table.get(side, None if default is None else default.bound)
    bound = _number(given)
    required = table.get("required", True if default is None else default.required)
    if math.isnan(bound):
        raise ConfigError(f"{where}: {name}.{side} must be a number that a float holds, not {given!r:.40}")
    if not isinstance(required, bool):
        raise ConfigError(f"{where}: {name}.required must be true or false, not {required!r}")
    return Threshold(bound, required)


def _number(value: object) -> float:
    """NaN where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan
