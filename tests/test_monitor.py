"""The monitor's figures, its decisions and the order of its steps."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from chatterbox_vllm.engine.request import SpeechResult, Timings
from chatterbox_vllm.errors import (
    AbortedError,
    AudioError,
    CheckpointError,
    ConfigError,
    DeadlineError,
    DeviceError,
    GenerationError,
    OutputError,
    TextTooLongError,
)
from chatterbox_vllm.serving.monitor import Decision, Monitor, MonitorLimits, Rollback, device_bytes_in_use, step_back


@dataclass(frozen=True)
class Config:
    t3: str | None = "bnb-4bit"
    s3gen: str | None = "bnb-8bit"
    voice_encoder: str | None = "bnb-4bit"
    double_quant: bool = True


LIMITS = MonitorLimits(failure_rate=0.2, window=10, least=5)


def good(work: float = 0.5) -> SpeechResult:
    timings = Timings(queued=9.0, talking=work / 2, voicing=work / 2, total=9.0 + work)
    return SpeechResult(0, "r", 0, 1, audio=torch.zeros(24_000), samples=24_000, finish_reason="stop", timings=timings)


def bad(error: Exception | None = None) -> SpeechResult:
    return SpeechResult(0, "r", 0, 1, error=error or GenerationError("broken"))


def test_the_ordered_rollback() -> None:
    config, steps = Config(), []
    while (found := step_back(config)) is not None:
        steps.append(found[0])
        config = found[1]
    assert steps == list(Rollback)
    assert config == Config(None, None, None, False)


@pytest.mark.parametrize(
    ("config", "step", "after"),
    [
        (Config("awq", None, None), Rollback.T3, Config("bnb-8bit", None, None)),
        (Config("fp8", None, None), Rollback.FULL, Config(None, None, None)),
        (Config("bnb-8bit", "bnb-8bit", None), Rollback.S3GEN, Config("bnb-8bit", None, None)),
        (Config(None, "bnb-4bit", None), Rollback.DOUBLE_QUANT, Config(None, "bnb-4bit", None, False)),
    ],
)
def test_steps_that_would_change_nothing_are_passed_over(config: Config, step: Rollback, after: Config) -> None:
    assert step_back(config) == (step, after)


def test_failures_take_one_component_back_at_a_time() -> None:
    applied: list[Decision] = []
    monitor = Monitor(LIMITS, Config(), applied.append)
    assert [monitor.observe(bad()) for _ in range(4)] == [None] * 4  # too little is known
    decision = monitor.observe(bad())
    assert decision is not None and applied == [decision]
    assert decision.step is Rollback.DOUBLE_QUANT and "100.0% of 5" in decision.reasons[0]
    assert monitor.config == Config(double_quant=False) and monitor.figures.results == 0
    for _ in range(10):
        assert monitor.observe(good()) is None
    # Two of the last ten are borne, the third is not.
    assert [monitor.observe(bad()) is None for _ in range(3)] == [True, True, False]
    assert [decision.step for decision in applied] == [Rollback.DOUBLE_QUANT, Rollback.VOICE_ENCODER]


def test_what_acts_on_a_decision_may_look_at_the_figures() -> None:
    seen: list[int] = []
    monitor = Monitor(LIMITS, Config(), lambda decision: seen.append(monitor.figures.results))
    # In a thread, as a lock that is held would hold the test as well.
    thread = threading.Thread(target=lambda: [monitor.observe(bad()) for _ in range(5)], daemon=True)
    thread.start()
    thread.join(5)
    assert seen == [5]


def test_speed_is_the_median_of_work_for_a_second_of_audio() -> None:
    monitor = Monitor(MonitorLimits(real_time_factor=0.6, window=10, least=3), Config())
    assert [monitor.observe(good(work)) for work in (0.5, 9.0, 0.5)] == [None] * 3
    assert monitor.figures.real_time_factor == pytest.approx(0.5)
    decision = monitor.observe(good(2.0))  # of 0.5, 0.5, 2 and 9
    assert decision is not None and decision.reasons == ("a second of audio takes 1.25 s",)


def test_speed_is_taken_over_the_results_that_failures_are() -> None:
    monitor = Monitor(MonitorLimits(failure_rate=1.0, window=5, least=5), Config())
    for result in [good(0.5)] * 5 + [bad()] * 4 + [good(5.0)]:
        monitor.observe(result)
    assert monitor.figures.failure_rate == 0.8 and monitor.figures.real_time_factor == pytest.approx(5.0)


def test_what_says_nothing_of_the_model_is_not_counted() -> None:
    monitor = Monitor(LIMITS, Config())
    for kind in (AbortedError, DeadlineError, TextTooLongError, AudioError, CheckpointError, OutputError):
        monitor.observe(bad(kind("x")))
    assert monitor.figures.results == 0 and monitor.figures.failure_rate is None
    monitor.observe(bad(DeviceError("x")))
    assert monitor.figures.failure_rate == 1.0


@pytest.mark.parametrize(
    ("tokens", "segments", "failed"), [(1000, 1, 1.0), (300, 1, 0.0), (1500, 2, 0.0), (2000, 2, 1.0)]
)
def test_speech_cut_off_is_a_failure_where_it_had_all_the_room(tokens: int, segments: int, failed: float) -> None:
    monitor = Monitor(LIMITS, Config())
    cut = {"audio": torch.zeros(10), "finish_reason": "length", "speech_tokens": (1,) * tokens, "segments": segments}
    monitor.observe(SpeechResult(0, "r", 0, 1, **cut))
    assert monitor.figures.failure_rate == failed


def test_without_room_on_the_card_nothing_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (56 << 20, 256 << 20))  # free, total
    applied: list[Decision] = []
    limits = MonitorLimits(failure_rate=0.2, device_bytes=100 << 20, window=10, least=1)
    monitor = Monitor(limits, Config(), applied.append, lambda: device_bytes_in_use(torch.device("cuda")))
    decision = monitor.observe(bad())
    assert decision is not None and decision.step is None and applied == []
    assert len(decision.reasons) == 2 and "200 MiB" in decision.reasons[1]
    assert monitor.config == Config()


def test_a_step_that_cannot_be_applied_is_not_taken() -> None:
    def fail(decision: Decision) -> None:
        raise GenerationError("no such luck")

    monitor = Monitor(MonitorLimits(least=1), Config(), fail)
    with pytest.raises(GenerationError):
        monitor.observe(bad())
    assert monitor.config == Config() and monitor.figures.results == 1


def test_a_step_that_failed_is_tried_again_only_after_further_results() -> None:
    tried: list[int] = []

    def fail(decision: Decision) -> None:
        tried.append(count)
        raise GenerationError("no such luck")

    monitor = Monitor(MonitorLimits(least=3, window=10), Config(), fail)
    for count in range(1, 10):
        if count % 3:
            decision = monitor.observe(bad())
            assert decision is None or decision.step is None
        else:
            with pytest.raises(GenerationError):
                monitor.observe(bad())
    assert tried == [3, 6, 9]


def test_an_unquantized_model_has_no_step_left() -> None:
    monitor = Monitor(MonitorLimits(least=1), Config(None, None, None))
    decision = monitor.observe(bad())
    assert decision is not None and decision.step is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"failure_rate": 1.5},
        {"failure_rate": "x"},
        {"failure_rate": True},
        {"failure_rate": float("nan")},
        {"real_time_factor": 0},
        {"real_time_factor": "x"},
        {"device_bytes": -1},
        {"device_bytes": 1.5},
        {"window": 2.5},
        {"window": True, "least": True},
        {"least": 0},
        {"least": 201},
        {"least": 1.5},
        {"least": "x"},
    ],
)
def test_bad_limits(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MonitorLimits(**wrong)


def test_told_to_stay_it_only_watches() -> None:
    monitor = Monitor(MonitorLimits(least=1), Config())
    monitor.stay_at(Config("bnb-8bit", None, None))
    decision = monitor.observe(bad())
    assert decision is not None and decision.reasons and decision.step is None and decision.config is None
    assert monitor.config == Config("bnb-8bit", None, None) and monitor.figures.results == 1


def test_who_acts_later_says_so() -> None:
    monitor = Monitor(MonitorLimits(least=1), Config())
    decision = monitor.assess(bad())
    assert decision is not None and decision.step is Rollback.DOUBLE_QUANT and monitor.config == Config()
    monitor.stay_at(Config())
    monitor.moved_to(decision.config)
    assert monitor.config == Config(double_quant=False) and monitor.figures.results == 0
    again = monitor.assess(bad())
    assert again is not None and again.step is Rollback.VOICE_ENCODER
