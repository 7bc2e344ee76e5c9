"""The report's page: one HTML file that needs nothing else, neither network nor script. Its form is page.html."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from chatterbox_vllm.audio.encode import encode_audio
from chatterbox_vllm.audio.features import RATE_24K
from chatterbox_vllm.evaluation import plots
from chatterbox_vllm.evaluation.collection import Collection, RunFacts
from chatterbox_vllm.evaluation.compare import SOUND, CaseFigures, Comparison
from chatterbox_vllm.evaluation.gates import Verdict
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.evaluation.report import summary, troubles, value_and_bound

_FIGURES = ("KL, nats", "Top-1", "Mel, nats", "Pitch, cents", "Spectrum, %", "PESQ", "STOI", "Speaker", "X-vector")
_OWN = ("Length, ratio", "Own spectrum, nats", "Own speaker")
_NONE = "–"


@dataclass(frozen=True)
class _Clip:
    """One player.

    Attributes:
        data: FLAC in base64; None where there is no audio.
        error: why there is none.
    """

    caption: str
    label: str
    data: str | None
    error: str | None


def as_html(
    plan: EvaluationPlan,
    comparison: Comparison,
    verdict: Verdict,
    baseline: Collection,
    candidate: Collection,
    listen: int = 8,
) -> str:
    """One page that needs nothing else: verdict, figures, plots, and audio side by side.

    Args:
        listen: how many cases have their audio in the page, those with the largest mel distance first.
    """
    import jinja2

    template = resources.files("chatterbox_vllm.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    cases = comparison.cases
    audible = sorted(cases, key=lambda figures: -(figures.mel_distance or 0.0))[:listen]
    heard = any(figures.word_errors is not None for figures in cases)
    return environment.from_string(template).render(
        verdict=verdict,
        summary=summary(verdict),
        baseline=_called(comparison.baseline),
        candidate=_called(comparison.candidate),
        spoken=_spoken(plan, len(cases)),
        value_and_bound=value_and_bound,
        troubles=troubles(comparison),
        audible=[figures.case.index for figures in audible],
        lost=sum(int(np.isinf(figures.kl).sum()) for figures in cases),
        thoughts=plots.position_curves(cases) + plots.divergence_histogram(cases),
        heard=heard,
        columns=(*_FIGURES, *_OWN, "Seconds", *(["Word errors"] if heard else [])),
        rows=[_row(figures, comparison, heard) for figures in cases],
        sections=[_section(figures, comparison, baseline, candidate) for figures in audible],
        runs=_runs(comparison),
    )


def _called(run: RunFacts) -> str:
    """A model as its user called it, with its options."""
    return " ".join([run.name, *(f"{key}={value}" for key, value in run.options.items())])


def _spoken(plan: EvaluationPlan, cases: int) -> str:
    voices = "the baseline's built-in voice" if not plan.clips else ", ".join(plan.clips)
    return (
        f"{cases} case{'' if cases == 1 else 's'}; {voices}; seed {plan.seed}, CFG weight {plan.cfg_weight:g}, "
        f"{plan.diffusion_steps} diffusion steps, at most {plan.max_tokens} speech tokens, batches of {plan.batch_size}"
    )


def _row(figures: CaseFigures, comparison: Comparison, heard: bool) -> dict[str, Any]:
    """A case in the table of all cases."""
    index, speech = figures.case.index, figures.speech
    means = [float(values.mean()) if len(values) else None for values in (figures.kl, figures.top1)]
    own = (None, None, None) if speech is None else (speech.duration, speech.spectrum, speech.speaker)
    values = [*means, *(getattr(figures, name) for name in SOUND), *own]
    cells = [_NONE if value is None else format(value, ".4g") for value in values]
    cells.append(" / ".join(_seconds(run, index) for run in (comparison.baseline, comparison.candidate)))
    if heard:
        wrong = figures.word_errors
        cells.append(_NONE if wrong is None else f"{wrong[0]} / {wrong[1]} of {wrong[2]}")
    return {"index": index, "text": figures.case.text, "cells": cells}


def _seconds(run: RunFacts, index: int) -> str:
    facts = run.cases[index]
    return "failed" if facts.error is not None else f"{facts.seconds:.1f}"


def _section(
    figures: CaseFigures, comparison: Comparison, baseline: Collection, candidate: Collection
) -> dict[str, Any]:
    """A case to listen to."""
    index = figures.case.index
    clips = []
    for kind, what in (("wave", "same tokens"), ("speech", "own words")):
        for name, collection, run in (
            ("Baseline", baseline, comparison.baseline),
            ("Candidate", candidate, comparison.candidate),
        ):
            facts = run.cases[index]
            wave, caption = collection.load(kind, index), f"{name}, {what}"
            data = None if wave is None else base64.b64encode(encode_audio(wave, RATE_24K, ".flac")).decode()
            error = facts.s3gen_error if kind == "wave" else facts.error
            clips.append(_Clip(caption, f"Case {index}: {caption}", data, error))
    mels = [collection.load("mel", index) for collection in (baseline, candidate)]
    pictures = "" if mels[0] is None or mels[1] is None else plots.mel_pictures(index, mels[0], mels[1])
    return {"index": index, "text": figures.case.text, "clips": clips, "mels": pictures}


def _runs(comparison: Comparison) -> list[tuple[str, Sequence[str]]]:
    columns = [_run(run) for run in (comparison.baseline, comparison.candidate)]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [_shown(column.get(name)) for column in columns]) for name in names]


def _shown(value: Any) -> str:
    return _NONE if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _run(run: RunFacts) -> dict[str, Any]:
    device = run.peak_device_bytes
    return {
        "model": run.model,
        **run.machine,
        "loading": f"{run.load_seconds:.1f} s",
        "speaking": f"{run.audio_seconds:.1f} s of audio"
        + ("" if run.speaking_seconds is None else f" in {run.speaking_seconds:.1f} s"),
        "peak host memory": f"{run.peak_host_bytes / 2**20:.0f} MiB",
        "peak device memory": None if device is None else f"{device / 2**20:.0f} MiB, counted by the {run.counted_by}",
    }
