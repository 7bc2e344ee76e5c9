"""Watches a long-lived process: rolling failures, speed and memory, and which component to take back to more bits.

    monitor = Monitor(MonitorLimits(failure_rate=0.05), config, apply=reload_with)
    for result in tts.run(requests):
        monitor.observe(result)

The monitor decides; `apply` acts on it, by loading the model with the configuration that it is given.
`monitored.MonitoredChatterbox` does all of this for `AsyncChatterbox`.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from chatterbox_vllm.engine.request import SpeechResult
from chatterbox_vllm.errors import CancelledError, ConfigError, DeadlineError

_SAMPLE_RATE = 24_000
_FOUR_BITS = ("bnb-4bit", "awq")
_EIGHT_BITS = "bnb-8bit"


class Rollback(Enum):
    """Steps back to higher precision, in the order in which they are taken: the cheapest in memory first.

    Each takes the steps before it along; one that would change nothing in the configuration is passed over.
    """

    DOUBLE_QUANT = "double quantization off"
    VOICE_ENCODER = "voice encoder in full precision"
    S3GEN = "S3Gen in full precision"
    T3 = "T3 from 4 to 8 bits"
    FULL = "nothing quantized"


def step_back(config: Any) -> tuple[Rollback, Any] | None:
    """The next step of the ordered rollback, and the configuration after it; None where nothing is quantized.

    Args:
        config: a frozen dataclass with the fields `t3`, `s3gen`, `voice_encoder` (a method's name or None) and
            `double_quant`, as `QuantizationConfig`.
    """
    components = ("t3", "s3gen", "voice_encoder")
    if config.double_quant and any(getattr(config, name) == "bnb-4bit" for name in components):
        return Rollback.DOUBLE_QUANT, replace(config, double_quant=False)
    if config.voice_encoder is not None:
        return Rollback.VOICE_ENCODER, replace(config, voice_encoder=None)
    if config.s3gen is not None:
        return Rollback.S3GEN, replace(config, s3gen=None)
    if config.t3 in _FOUR_BITS:
        return Rollback.T3, replace(config, t3=_EIGHT_BITS)
    if config.t3 is not None:
        return Rollback.FULL, replace(config, t3=None)
    return None


@dataclass(frozen=True)
class MonitorLimits:
    """What calls for a step back.

    Attributes:
        failure_rate: largest share of failed results, 0 to 1.
        real_time_factor: largest median of seconds of work for a second of audio; None does not judge it.
        device_bytes: memory on the card above which nothing is taken back, as a step back needs more; None is no limit.
        window: results that the figures are taken over.
        least: results after the start or a step before anything is decided.

    Raises:
        ConfigError: a value out of range.
    """

    failure_rate: float = 0.05
    real_time_factor: float | None = None
    device_bytes: int | None = None
    window: int = 200
    least: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.failure_rate <= 1:
            raise ConfigError(f"failure_rate must be from 0 to 1, not {self.failure_rate!r}")
        for name in ("real_time_factor", "device_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive or None, not {value!r}")
        if not 1 <= self.least <= self.window:
            raise ConfigError(f"least must be from 1 to window={self.window}, not {self.least!r}")


@dataclass(frozen=True)
class Figures:
    """The rolling figures.

    Attributes:
        results: how many they are taken over.
        failure_rate: None where there is no result.
        real_time_factor: median over the results with audio; None where there is none.
        device_bytes: in use on the card; None where nothing measures it.
    """

    results: int
    failure_rate: float | None
    real_time_factor: float | None
    device_bytes: int | None


@dataclass(frozen=True)
class Decision:
    """What the figures call for.

    Attributes:
        reasons: the limits that are exceeded.
        step: the step back to take, or None where there is none left, or no memory for it.
        config: the configuration after the step.
    """

    reasons: tuple[str, ...]
    step: Rollback | None = None
    config: Any = None


def decide(figures: Figures, limits: MonitorLimits, config: Any) -> Decision | None:
    """None while all is well, or too little is known."""
    if figures.results < limits.least:
        return None
    reasons = []
    if figures.failure_rate is not None and figures.failure_rate > limits.failure_rate:
        reasons.append(f"{figures.failure_rate:.1%} of {figures.results} results failed")
    factor = figures.real_time_factor
    if factor is not None and limits.real_time_factor is not None and factor > limits.real_time_factor:
        reasons.append(f"a second of audio takes {factor:.3g} s")
    used = figures.device_bytes
    full = used is not None and limits.device_bytes is not None and used > limits.device_bytes
    if used is not None and full:
        reasons.append(f"{used / 2**20:.0f} MiB are in use on the card: no room for a step back")
    if not reasons:
        return None
    found = None if full else step_back(config)
    return Decision(tuple(reasons)) if found is None else Decision(tuple(reasons), *found)


class Monitor:
    """Observes results and decides; safe to use from several threads.

    Args:
        config: the quantization in force, see `step_back`.
        apply: called with the decision wherever it holds a step; it loads the model anew with `decision.config`. Where
            it raises, the step does not count as taken.
        device_bytes: asked for the memory in use on the card.
    """

    def __init__(
        self,
        limits: MonitorLimits,
        config: Any,
        apply: Callable[[Decision], None] | None = None,
        device_bytes: Callable[[], int] | None = None,
    ):
        self.limits = limits
        self.config = config
        self._apply = apply
        self._device_bytes = device_bytes
        self._may_step = True
        self._failures: deque[bool] = deque(maxlen=limits.window)
        self._factors: deque[float] = deque(maxlen=limits.window)
        self._lock = threading.RLock()  # `apply` may look at the figures

    def observe(self, result: SpeechResult) -> Decision | None:
        """Take a result in; returns what its figures call for, after `apply` has acted on it."""
        with self._lock:
            if not _says_something(result):
                return None
            self._failures.append(result.error is not None or result.finish_reason == "length")
            if result.audio is not None and len(result.audio):
                work = result.timings.talking + result.timings.voicing
                self._factors.append(work * _SAMPLE_RATE / len(result.audio))
            decision = decide(self._figures(), self.limits, self.config)
            if decision is not None and not self._may_step:
                decision = Decision(decision.reasons)
            if decision is not None and decision.step is not None:
                if self._apply is not None:
                    self._apply(decision)
                self.config = decision.config
                # What was seen belongs to the configuration before.
                self._failures.clear()
                self._factors.clear()
            return decision

    def stay_at(self, config: Any) -> None:
        """Only watch from now on, a model that runs with `config`: decisions hold no further step."""
        with self._lock:
            self.config = config
            self._may_step = False

    @property
    def figures(self) -> Figures:
        """What the next decision would be made on."""
        with self._lock:
            return self._figures()

    def _figures(self) -> Figures:
        count = len(self._failures)
        return Figures(
            results=count,
            failure_rate=sum(self._failures) / count if count else None,
            real_time_factor=statistics.median(self._factors) if self._factors else None,
            device_bytes=None if self._device_bytes is None else self._device_bytes(),
        )


def device_bytes_in_use(device: torch.device) -> int:
    """Memory in use on a CUDA device as its driver sees it, all processes and their contexts; for `Monitor`."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _says_something(result: SpeechResult) -> bool:
    """Whether a result tells of the model, and not of a caller who withdrew or asked wrongly, or of a busy machine."""
    return not isinstance(result.error, (CancelledError, DeadlineError, ConfigError))
