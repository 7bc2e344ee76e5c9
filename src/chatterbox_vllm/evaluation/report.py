"""What an evaluation found, as JSON for machines and in lines for a terminal; page.py is for people."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from chatterbox_vllm.evaluation.collection import RunFacts
from chatterbox_vllm.evaluation.compare import SOUND, CaseFigures, Comparison
from chatterbox_vllm.evaluation.compare_speech import NO_AUDIO
from chatterbox_vllm.evaluation.gates import Judgement, Status, Verdict
from chatterbox_vllm.evaluation.plan import EvaluationPlan


@dataclasses.dataclass(frozen=True)
class Trouble:
    """Something that a model could not do.

    Attributes:
        model: "baseline" or "candidate".
        case: its index, or None where a clip could not be enrolled.
    """

    model: str
    case: int | None
    what: str


def troubles(comparison: Comparison) -> list[Trouble]:
    """All that went wrong, the baseline's first."""
    found = []
    for name, run in (("baseline", comparison.baseline), ("candidate", comparison.candidate)):
        for case in run.cases:
            found += [Trouble(name, case.index, what) for what in dict.fromkeys(case.troubles)]
            if (speech := comparison.cases[case.index].speech) is not None:
                fault = speech.baseline_fault if name == "baseline" else speech.candidate_fault
                if fault is not None and fault != NO_AUDIO:
                    found.append(Trouble(name, case.index, f"own speech: {fault}"))
            if case.s3gen_error is not None:
                found.append(Trouble(name, case.index, f"the baseline's tokens not voiced: {case.s3gen_error}"))
        for clip, error in run.enrolments.items():
            if error is not None:
                found.append(Trouble(name, None, f"{clip} not enrolled: {error}"))
    return found


def summary(verdict: Verdict) -> str:
    """The verdict's reasons in a sentence or three."""
    names = {status: [j.name for j in verdict.judgements if j.status is status] for status in Status}
    optional = [name for name in names[Status.NOT_RUN] if name not in verdict.missing]
    parts = [f"{len(names[Status.PASSED])} of {len(verdict.judgements)} gates passed."]
    for what, which in (
        ("Failed", names[Status.FAILED]),
        ("Required, but could not run", verdict.missing),
        ("Not run and not required", optional),
    ):
        if which:
            parts.append(f"{what}: {', '.join(which)}.")
    return " ".join(parts)


def as_json(plan: EvaluationPlan, comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    """Everything but the audio. Numbers that are not finite are strings ("inf", "nan"), as JSON has none such."""
    data = {
        "verdict": verdict.word,
        "missing": list(verdict.missing),
        "gates": {j.name: _gate(j) for j in verdict.judgements},
        "baseline": _run(comparison.baseline),
        "candidate": _run(comparison.candidate),
        "plan": dataclasses.asdict(plan),
        "cases": [_case(figures, comparison) for figures in comparison.cases],
    }
    return _finite(data)


def line(judgement: Judgement) -> str:
    """One gate for a terminal."""
    return f"{judgement.status.value:<8} {judgement.name:<20} {_measured(judgement)}"


def value_and_bound(judgement: Judgement) -> tuple[str | None, str]:
    """The gate's value, None without one, and its bound.

    Both have four digits, or as many as it takes to see on which side of the bound the value is.
    """
    value, bound = judgement.measurement.value, judgement.threshold.bound
    if value is None:
        return None, f"{bound:g}"
    if math.isnan(value):
        return "nan", f"{bound:g}"
    pairs = ((f"{value:.{digits}g}", f"{bound:.{digits}g}") for digits in (4, 6, 9, 12, 17))
    return next(pair for pair in pairs if _order(*map(float, pair)) == _order(value, bound))


def _order(a: float, b: float) -> tuple[bool, bool]:
    return a < b, a > b


def _measured(judgement: Judgement) -> str:
    kind = judgement.kind
    value, bound = value_and_bound(judgement)
    if value is None:
        return judgement.measurement.note
    limit = f"{'<=' if kind.bound == 'maximum' else '>='} {bound} {kind.unit}".rstrip()
    return f"{value} ({limit}; {judgement.measurement.note})"


def _gate(judgement: Judgement) -> dict[str, Any]:
    return {
        "status": judgement.status.value,
        "value": judgement.measurement.value,
        "note": judgement.measurement.note,
        judgement.kind.bound: judgement.threshold.bound,
        "required": judgement.threshold.required,
        "unit": judgement.kind.unit,
    }


def _run(run: RunFacts) -> dict[str, Any]:
    data = dataclasses.asdict(run)
    del data["cases"]
    return data | {"audio_seconds": run.audio_seconds, "real_time_factor": run.real_time_factor}


def _case(figures: CaseFigures, comparison: Comparison) -> dict[str, Any]:
    index = figures.case.index
    data = dataclasses.asdict(figures.case) | {name: getattr(figures, name) for name in SOUND}
    return data | {
        "positions": len(figures.kl),
        "t3_kl": float(figures.kl.mean()) if len(figures.kl) else None,
        "t3_top1": float(figures.top1.mean()) if len(figures.top1) else None,
        "speech": None if figures.speech is None else dataclasses.asdict(figures.speech),
        "word_errors": figures.word_errors,
        "kl_by_position": figures.kl.tolist(),
        "baseline": dataclasses.asdict(comparison.baseline.cases[index]),
        "candidate": dataclasses.asdict(comparison.candidate.cases[index]),
    }


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
