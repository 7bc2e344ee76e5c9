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
from chatterbox_vllm.errors import AbortedError, AudioError, CheckpointError, ConfigError, DeadlineError, OutputError
from chatterbox_vllm.families.registry import DEFAULT_FAMILY

_SAMPLE_RATE = 24_000
_FOUR_BITS = ("bnb-4bit", "awq")
_EIGHT_BITS = "bnb-8bit"
# A caller who withdrew, or whose text, clip, voice or disk cannot be used; and a busy machine.
_NOT_THE_MODELS = (AbortedError, DeadlineError, ConfigError, AudioError, CheckpointError, OutputError)


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
        least: results after the start or a step before anything is decided, and after a step that could not be taken
            before the next is tried.

    Raises:
        ConfigError: a value out of range or of the wrong type.
    """

    failure_rate: float = 0.05
    real_time_factor: float | None = None
    device_bytes: int | None = None
    window: int = 200
    least: int = 20

    def __post_init__(self) -> None:
        if not _is_number(self.failure_rate) or not 0 <= self.failure_rate <= 1:
            raise ConfigError(f"failure_rate must be a number from 0 to 1, not {self.failure_rate!r}")
        factor, most = self.real_time_factor, self.device_bytes
        if factor is not None and not (_is_number(factor) and factor > 0):
            raise ConfigError(f"real_time_factor must be a positive number or None, not {factor!r}")
        if most is not None and not (_is_integer(most) and most > 0):
            raise ConfigError(f"device_bytes must be a positive integer or None, not {most!r}")
        if not _is_integer(self.window) or self.window < 1:
            raise ConfigError(f"window must be a positive integer, not {self.window!r}")
        if not _is_integer(self.least) or not 1 <= self.least <= self.window:
            raise ConfigError(f"least must be an integer from 1 to window={self.window}, not {self.least!r}")


@dataclass(frozen=True)
class Figures:
    """The rolling figures.

    Attributes:
        results: how many they are taken over.
        failure_rate: None where there is no result.
        real_time_factor: median over those of them with audio; None where there is none.
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
        step: the step back to take, or None where there is none left, no memory for it, or it was put off.
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

    A result with an error counts as failed, unless its caller withdrew or asked for what cannot be, or it was late. So
    does speech that was cut off ("length") at the default `max_tokens` or later; a caller's own lower limit is no
    failure. A result does not tell its limit, so of a text in segments only the sum of tokens is judged.

    Args:
        config: the quantization in force, see `step_back`.
        apply: called with the decision wherever it holds a step; it loads the model anew with `decision.config`. Where
            it raises, the step does not count as taken, and is tried again after `least` further results.
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
        self._rest = 0  # results to come before a step that was put off
        # Of each result whether it failed, and its real-time factor where it has audio.
        self._seen: deque[tuple[bool, float | None]] = deque(maxlen=limits.window)
        self._lock = threading.RLock()  # `apply` may look at the figures

    def observe(self, result: SpeechResult) -> Decision | None:
        """Take a result in; returns what its figures call for, after `apply` has acted on it."""
        with self._lock:
            decision = self.assess(result)
            if decision is not None and decision.step is not None:
                try:
                    if self._apply is not None:
                        self._apply(decision)
                except BaseException:
                    self.put_off()
                    raise
                self.moved_to(decision.config)
            return decision

    def assess(self, result: SpeechResult) -> Decision | None:
        """Take a result in and return what its figures call for; whoever acts on it later says so to `moved_to`."""
        with self._lock:
            if isinstance(result.error, _NOT_THE_MODELS):
                return None
            self._seen.append((result.error is not None or _lost_its_way(result), _factor(result)))
            self._rest = max(0, self._rest - 1)
            decision = decide(self._figures(), self.limits, self.config)
            if decision is not None and (self._rest or not self._may_step):
                return Decision(decision.reasons)
            return decision

    def moved_to(self, config: Any) -> None:
        """A model runs with `config` from now on: what was seen belongs to the one before."""
        with self._lock:
            self.config = config
            self._may_step = True
            self._rest = 0
            self._seen.clear()

    def put_off(self) -> None:
        """A step cannot be taken now: decisions hold none until `least` further results are in."""
        with self._lock:
            self._rest = self.limits.least

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
        count = len(self._seen)
        factors = [factor for _, factor in self._seen if factor is not None]
        return Figures(
            results=count,
            failure_rate=sum(failed for failed, _ in self._seen) / count if count else None,
            real_time_factor=statistics.median(factors) if factors else None,
            device_bytes=None if self._device_bytes is None else self._device_bytes(),
        )


def device_bytes_in_use(device: torch.device) -> int:
    """Memory in use on a CUDA device as its driver sees it, all processes and their contexts; for `Monitor`."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _lost_its_way(result: SpeechResult) -> bool:
    """Whether the model spoke on to the end of the room that requests have by default, without end of speech."""
    room = DEFAULT_FAMILY.defaults.max_tokens * max(1, result.segments)
    return result.finish_reason == "length" and len(result.speech_tokens) >= room


def _factor(result: SpeechResult) -> float | None:
    """Seconds of work for a second of audio; None without audio."""
    if result.error is not None or not result.samples:
        return None
    return (result.timings.talking + result.timings.voicing) * _SAMPLE_RATE / result.samples


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
