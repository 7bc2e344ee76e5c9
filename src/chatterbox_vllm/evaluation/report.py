"""What an evaluation found: JSON for machines, one self-contained HTML page for people."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from chatterbox_vllm.audio.encode import encode_audio
from chatterbox_vllm.errors import OutputError
from chatterbox_vllm.evaluation import plots
from chatterbox_vllm.evaluation.collection import Collection, RunFacts
from chatterbox_vllm.evaluation.compare import CaseFigures, Comparison
from chatterbox_vllm.evaluation.gates import Judgement, Status, Verdict
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.models.features import RATE_24K

_SOUND = (
    "mel_distance",
    "pitch_error",
    "spectral_distortion",
    "pesq",
    "stoi",
    "speaker_similarity",
    "xvector_similarity",
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a202c }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { text-align: left; padding: .3rem .6rem }
tr { border-bottom: 1px solid #e2e8f0 } td.n { text-align: right; font-variant-numeric: tabular-nums }
.passed { color: #276749 } .failed { color: #c53030; font-weight: 600 } .not-run, .incomplete { color: #975a16 }
audio { width: 100%; min-width: 11rem } svg { max-width: 100%; height: auto } small { color: #4a5568 }
"""


def as_json(plan: EvaluationPlan, comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    """Everything but the audio. Numbers that are not finite are strings ("inf", "nan"), as JSON has none such."""
    data = {
        "verdict": verdict.word,
        "missing": list(verdict.missing),
        "gates": {j.name: _gate(j) for j in verdict.judgements},
        "baseline": _run(comparison.baseline),
        "candidate": _run(comparison.candidate),
        "plan": plan.to_json(),
        "cases": [_case(figures, comparison) for figures in comparison.cases],
    }
    return _finite(data)


def as_html(
    comparison: Comparison, verdict: Verdict, baseline: Collection, candidate: Collection, listen: int = 8
) -> str:
    """One page that needs nothing else: figures, plots, and audio side by side.

    Args:
        listen: how many cases have their audio in the page, those with the largest mel distance first.
    """
    models = [escape(f"{run.model} {run.options or ''}".strip()) for run in (comparison.baseline, comparison.candidate)]
    audible = sorted(comparison.cases, key=lambda figures: -(figures.mel_distance or 0.0))[:listen]
    parts = [
        f"<h1>Evaluation: <span class={verdict.word}>{verdict.word}</span></h1>",
        f"<p>Baseline: {models[0]}<br>Candidate: {models[1]}</p>",
        _gate_table(verdict.judgements),
        "<h2>T3, forced to say what the baseline said</h2>",
        plots.position_curves(comparison.cases),
        plots.divergence_histogram(comparison.cases),
        "<h2>Every case</h2>",
        _case_table(comparison.cases),
        "<h2>Listening</h2><p>Same tokens: both S3Gens on the baseline's tokens and pitch and the same noise. Own "
        "words: each model from the text, with the same seed.</p>",
        *(_listening(figures, baseline, candidate) for figures in audible),
        "<h2>Machines</h2>",
        _machines(comparison),
    ]
    head = f'<meta charset="utf-8"><title>Evaluation: {verdict.word}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def write(path: Path, text: str) -> None:
    """Raises OutputError if the file cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def line(judgement: Judgement) -> str:
    """One gate for a terminal."""
    return f"{judgement.status.value:<8} {judgement.name:<20} {_figures(judgement)}"


def _figures(judgement: Judgement) -> str:
    value, kind = judgement.measurement.value, judgement.kind
    if value is None:
        return judgement.measurement.note
    sign = "<=" if kind.bound == "maximum" else ">="
    return f"{value:.4g} ({sign} {judgement.threshold.bound:g} {kind.unit}; {judgement.measurement.note})"


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
    data = dataclasses.asdict(figures.case) | {name: getattr(figures, name) for name in _SOUND}
    return data | {
        "positions": len(figures.kl),
        "t3_kl": float(figures.kl.mean()) if len(figures.kl) else None,
        "t3_top1": float(figures.top1.mean()) if len(figures.top1) else None,
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


def _gate_table(judgements: Sequence[Judgement]) -> str:
    rows = []
    for j in judgements:
        style = j.status.value.replace(" ", "-")
        needed = "" if j.threshold.required or j.status is not Status.NOT_RUN else " (not required)"
        rows.append(
            f"<tr><td><b>{j.name}</b><br><small>{escape(j.kind.what)}</small></td>"
            f"<td class={style}>{j.status.value}{needed}</td><td>{escape(_figures(j))}</td></tr>"
        )
    return f"<table><tr><th>Gate</th><th>Verdict</th><th>Measured</th></tr>{''.join(rows)}</table>"


def _case_table(cases: Sequence[CaseFigures]) -> str:
    names = ("T3 divergence", "same top-1", "mel", "pitch", "spectrum %", "PESQ", "STOI", "speaker", "x-vector")
    rows = []
    for figures in cases:
        thoughts = [float(values.mean()) if len(values) else None for values in (figures.kl, figures.top1)]
        values = [*thoughts, *(getattr(figures, name) for name in _SOUND)]
        cells = "".join(f"<td class=n>{'–' if value is None else format(value, '.4g')}</td>" for value in values)
        rows.append(f"<tr><td>{figures.case.index}: {escape(figures.case.text[:50])}</td>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr><th>Case</th>{head}</tr>{''.join(rows)}</table>"


def _listening(figures: CaseFigures, baseline: Collection, candidate: Collection) -> str:
    index = figures.case.index
    rows = []
    for kind, what in (("wave", "Same tokens"), ("speech", "Own words")):
        players = [_player(collection.load(kind, index)) for collection in (baseline, candidate)]
        rows.append(f"<tr><td>{what}</td><td>{players[0]}</td><td>{players[1]}</td></tr>")
    mels = [collection.load("mel", index) for collection in (baseline, candidate)]
    picture = "" if mels[0] is None or mels[1] is None else plots.mel_pictures(mels[0], mels[1])
    head = "<tr><th></th><th>Baseline</th><th>Candidate</th></tr>"
    return f"<h3>{index}: {escape(figures.case.text)}</h3><table>{head}{''.join(rows)}</table>{picture}"


def _player(wave: np.ndarray | None) -> str:
    if wave is None:
        return "nothing"
    data = base64.b64encode(encode_audio(wave, RATE_24K, ".flac")).decode()
    return f'<audio controls preload="none" src="data:audio/flac;base64,{data}"></audio>'


def _machines(comparison: Comparison) -> str:
    rows = []
    for name, run in (("Baseline", comparison.baseline), ("Candidate", comparison.candidate)):
        facts = ", ".join(f"{key} {value}" for key, value in run.machine.items())
        rows.append(
            f"<tr><td>{name}</td><td>{escape(facts)}; loaded in {run.load_seconds:.1f} s, "
            f"{run.audio_seconds:.1f} s of speech in {run.speaking_seconds:.1f} s</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"
