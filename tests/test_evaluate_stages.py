"""What `evaluate` keeps of a model's repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm.engine.request import SpeechResult
from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.evaluation.collection import Collection, RunFacts
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.evaluation.stages import speak
from tests.fakes import a_voice

VOICE = a_voice()


def test_audio_that_is_not_finite_is_a_failure_and_not_kept(tmp_path: Path) -> None:
    audio = torch.zeros(2400)
    audio[7] = torch.nan
    result = SpeechResult(0, "r", 0, 1, audio=audio, finish_reason="stop")
    tts: Any = SimpleNamespace(run=lambda requests: [result] if len(requests) else [], sr=24_000)
    plan = EvaluationPlan(texts=("Good morning.",), repeats=1)
    into = Collection.create(tmp_path / "out")
    (facts,), _ = speak(tts, plan, [VOICE], into)
    assert facts.trouble and "not finite" in str(facts.error) and facts.seconds == 0
    assert into.load("speech", 0) is None


class Flaky:
    """A model whose repeats take as many seconds, by a clock of its own, and fail or not."""

    sr = 24_000

    def __init__(self, repeats: Sequence[tuple[float, bool]], monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        self._repeats = iter([(0.0, False), *repeats])  # the first warms up
        monkeypatch.setattr("chatterbox_vllm.evaluation.stages.time.perf_counter", lambda: self.now)

    def run(self, requests: Sequence[Any]) -> Iterator[SpeechResult]:
        seconds, fails = next(self._repeats)
        self.now += seconds
        for i in range(len(requests)):
            if fails:
                yield SpeechResult(0, "r", i, 1, error=GenerationError("no room"))
            else:
                audio = torch.full((int(24_000 * seconds),), seconds)
                yield SpeechResult(0, "r", i, 1, audio=audio, finish_reason="stop", speech_tokens=(1,))


@pytest.mark.parametrize(
    ("repeats", "seconds", "kept", "failure_rate"),
    [
        ([(3.0, False), (2.0, False), (4.0, False)], 2.0, 2.0, 0),
        ([(3.0, False), (0.1, True)], 3.0, 3.0, 0.5),
        ([(0.1, True), (3.0, False), (0.1, True)], 3.0, 3.0, 2 / 3),
        ([(0.1, True), (0.2, True)], None, None, 1),
    ],
)
def test_the_fastest_repeat_without_failures_is_timed_and_all_failures_count(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repeats: list[tuple[float, bool]],
    seconds: float | None,
    kept: float | None,
    failure_rate: float,
) -> None:
    into = Collection.create(tmp_path / "out")
    plan = EvaluationPlan(texts=("Good morning.",), repeats=len(repeats))
    tts: Any = Flaky(repeats, monkeypatch)
    cases, found = speak(tts, plan, [VOICE], into)
    facts = RunFacts("babble", "babble", {}, {}, speaking_seconds=found, cases=cases, repeats=plan.repeats)
    assert found == seconds and facts.failure_rate == pytest.approx(failure_rate)
    # Time and audio are of one repeat; here each takes as long as it speaks.
    assert facts.real_time_factor == (None if seconds is None else 1)
    speech = into.load("speech", 0)
    assert speech is None if kept is None else speech is not None and speech[0] == kept
    into.write_facts(facts)
    assert into.facts() == facts
