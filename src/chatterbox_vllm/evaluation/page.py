"""The report's page: one HTML file that needs nothing else, neither network nor script."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from chatterbox_vllm.audio.encode import encode_audio
from chatterbox_vllm.audio.features import RATE_24K
from chatterbox_vllm.evaluation import plots
from chatterbox_vllm.evaluation.collection import Collection, RunFacts
from chatterbox_vllm.evaluation.compare import SOUND, CaseFigures, Comparison
from chatterbox_vllm.evaluation.gates import Judgement, Status, Verdict
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.evaluation.report import Trouble, summary, troubles, value_and_bound

# Even if something in a text slipped through, the browser would neither run nor fetch it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a202c; --dim: #4a5568; --rule: #dde3ea; --data: #c05621;
  --good: #276749; --bad: #c53030; --open: #8a5210; --link: #2b6cb0 }
@media (prefers-color-scheme: dark) { :root { --paper: #15181e; --ink: #e4e7ec; --dim: #a3acba; --rule: #363d49;
  --data: #f0a05c; --good: #68d391; --bad: #fc8181; --open: #eab566; --link: #90cdf4 } }
@media print { :root { color-scheme: light } audio { display: none } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper); color: var(--ink); overflow-wrap: break-word }
h1, h2, h3 { line-height: 1.25; margin: 2.2rem 0 .6rem } h1 { margin-top: 0 } h3 { margin-top: 1.8rem }
p { margin: .4rem 0; max-width: 48rem } a { color: var(--link) } .dim, small { color: var(--dim) }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem 1rem } dt { color: var(--dim) }
dd { margin: 0; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } tr { border-bottom: 1px solid var(--rule) }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0 } thead th { color: var(--dim) }
td.any { overflow-wrap: anywhere } small { display: block; font-weight: 400 }
.n { text-align: right; font-variant-numeric: tabular-nums } td.n { white-space: nowrap }
.passed { color: var(--good) } .failed { color: var(--bad); font-weight: 600 }
.not-run, .incomplete { color: var(--open) }
.wide { overflow-x: auto } .wide table { min-width: 58rem } .wide td.any { width: 13rem; min-width: 9rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .8rem }
.players { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: .5rem 1.2rem;
  margin: .6rem 0 }
figure { margin: 0 } figcaption { color: var(--dim); font-size: .85rem } audio { width: 100%; height: 2.6rem }
svg { width: 100%; height: auto; display: block }
@media (max-width: 40rem) { body { margin: 1rem auto } th, td { padding-right: .5rem } table { font-size: .93rem } }
"""
_COLUMNS = ("KL, nats", "Top-1", "Mel, nats", "Pitch, cents", "Spectrum, %", "PESQ", "STOI", "Speaker", "X-vector")


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
    audible = sorted(comparison.cases, key=lambda figures: -(figures.mel_distance or 0.0))[:listen]
    body = [
        f"<h1>Evaluation: <span class={verdict.word}>{verdict.word}</span></h1>",
        f"<p>{escape(summary(verdict))}</p>",
        _models(plan, comparison),
        "<h2>Gates</h2>",
        _gates(verdict.judgements),
        _what_went_wrong(troubles(comparison), audible),
        _thoughts(comparison.cases),
        "<h2>Cases</h2>",
        _cases(comparison, audible),
        *_listening(audible, comparison, baseline, candidate),
        "<h2>Runs</h2>",
        _runs(comparison),
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>Evaluation {verdict.word}: {escape(_called(comparison.candidate))}</title><style>{_STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n'
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _called(run: RunFacts) -> str:
    """A model as its user called it, with its options."""
    return " ".join([run.name, *(f"{key}={value}" for key, value in run.options.items())])


def _models(plan: EvaluationPlan, comparison: Comparison) -> str:
    voices = "the baseline's built-in voice" if not plan.clips else ", ".join(plan.clips)
    settings = (
        f"{_count(len(comparison.cases), 'case')}; {voices}; seed {plan.seed}, CFG weight {plan.cfg_weight:g}, "
        f"{plan.diffusion_steps} diffusion steps, at most {plan.max_tokens} speech tokens, batches of {plan.batch_size}"
    )
    return _definitions(
        ("Baseline", _called(comparison.baseline)), ("Candidate", _called(comparison.candidate)), ("Spoken", settings)
    )


def _definitions(*pairs: tuple[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{escape(text)}</dd>' for name, text in pairs)}</dl>"


def _gates(judgements: Sequence[Judgement]) -> str:
    rows = []
    for j in judgements:
        style = j.status.value.replace(" ", "-")
        optional = "" if j.threshold.required or j.status is not Status.NOT_RUN else "<small>not required</small>"
        rows.append(
            # On a phone a name may break where its words do.
            f"<tr><th scope=row>{j.name.replace('_', '_<wbr>')}<small>{escape(j.kind.what)}</small></th>"
            f"<td class={style}>{j.status.value}{optional}</td><td>{_measured(j)}</td></tr>"
        )
    return _table(("Gate", "Verdict", "Measured"), rows)


def _measured(judgement: Judgement) -> str:
    value, number = value_and_bound(judgement)
    bound = f"{'at most' if judgement.kind.bound == 'maximum' else 'at least'} {number}"
    note = escape(judgement.measurement.note)
    if value is None:
        return f"{note}<small>{bound}</small>"
    unit = f" {judgement.kind.unit}" if judgement.kind.unit else ""
    return f"<b>{value}</b>{unit}, {bound}<small>{note}</small>"


def _what_went_wrong(found: Sequence[Trouble], audible: Sequence[CaseFigures]) -> str:
    if not found:
        return ""
    rows = [
        f"<tr><td>{trouble.model}</td><td>{_link(trouble.case, audible) if trouble.case is not None else '–'}</td>"
        f"<td class=any>{escape(trouble.what)}</td></tr>"
        for trouble in found
    ]
    return "<h2>What went wrong</h2>" + _table(("Model", "Case", "What happened"), rows)


def _thoughts(cases: Sequence[CaseFigures]) -> str:
    pictures = plots.position_curves(cases) + plots.divergence_histogram(cases)
    lost = sum(int(np.isinf(figures.kl).sum()) for figures in cases)
    infinite = f" {_count(lost, 'position')} with an infinite divergence: in the histogram only." if lost else ""
    return (
        "<h2>T3, forced to say what the baseline said</h2>"
        + (f"<p class=dim>{infinite}</p>" if lost else "")
        + (f"<div class=plots>{pictures}</div>" if pictures else "<p>The baseline said nothing.</p>")
    )


def _cases(comparison: Comparison, audible: Sequence[CaseFigures]) -> str:
    heard = any(figures.word_errors is not None for figures in comparison.cases)
    rows = []
    for figures in comparison.cases:
        index = figures.case.index
        means = [float(values.mean()) if len(values) else None for values in (figures.kl, figures.top1)]
        values = [*means, *(getattr(figures, name) for name in SOUND)]
        cells = ["–" if value is None else format(value, ".4g") for value in values]
        cells.append(" / ".join(_seconds(run, index) for run in (comparison.baseline, comparison.candidate)))
        if heard:
            wrong = figures.word_errors
            cells.append("–" if wrong is None else f"{wrong[0]} / {wrong[1]} of {wrong[2]}")
        text = figures.case.text
        shown = text if len(text) <= 60 else text[:59].rstrip() + "…"
        rows.append(
            f"<tr><td class=any>{_link(index, audible)} <span {_FOREIGN}>{escape(shown)}</span></td>"
            f"{''.join(f'<td class=n>{cell}</td>' for cell in cells)}</tr>"
        )
    head = ("Case", *_COLUMNS, "Seconds", *(["Word errors"] if heard else []))
    pairs = "Seconds and word errors" if heard else "Seconds"
    return (
        f"<p class=dim>{pairs}: of each model's own words, the baseline's / the candidate's.</p>"
        '<div class=wide tabindex=0 role=region aria-label="Figures of every case">'
        f"{_table(head, rows, numbers=1)}</div>"
    )


# Texts may be of any language and direction.
_FOREIGN = 'lang="" dir="auto"'


def _link(index: int, audible: Sequence[CaseFigures]) -> str:
    here = any(figures.case.index == index for figures in audible)
    return f'<a href="#case-{index}">{index}</a>' if here else str(index)


def _seconds(run: RunFacts, index: int) -> str:
    facts = run.cases[index]
    return "failed" if facts.error is not None else f"{facts.seconds:.1f}"


def _listening(
    audible: Sequence[CaseFigures], comparison: Comparison, baseline: Collection, candidate: Collection
) -> Iterator[str]:
    if not audible:
        return
    yield (
        "<h2>Listening</h2><p>Same tokens: both S3Gens on the baseline's tokens and pitch and the same noise. "
        "Own words: each model from the text, with the same seed.</p>"
    )
    if len(audible) < len(comparison.cases):
        yield f"<p class=dim>The {len(audible)} of {len(comparison.cases)} cases with the largest mel distance.</p>"
    for figures in audible:
        yield _case(figures, comparison, baseline, candidate)


def _case(figures: CaseFigures, comparison: Comparison, baseline: Collection, candidate: Collection) -> str:
    index = figures.case.index
    players = []
    for kind, what in (("wave", "same tokens"), ("speech", "own words")):
        for name, collection, run in (
            ("Baseline", baseline, comparison.baseline),
            ("Candidate", candidate, comparison.candidate),
        ):
            facts = run.cases[index]
            error = facts.s3gen_error if kind == "wave" else facts.error
            caption = f"{name}, {what}"
            player = _player(collection.load(kind, index), f"Case {index}: {caption}", error)
            players.append(f"<figure><figcaption>{caption}</figcaption>{player}</figure>")
    mels = [collection.load("mel", index) for collection in (baseline, candidate)]
    pictures = "" if mels[0] is None or mels[1] is None else plots.mel_pictures(index, mels[0], mels[1])
    return (
        f"<section><h3 id=case-{index}>Case {index}</h3><p {_FOREIGN}>{escape(figures.case.text)}</p>"
        f"<div class=players>{''.join(players)}</div>"
        + (f"<div class=plots>{pictures}</div>" if pictures else "<p class=dim>There are no two mels to compare.</p>")
        + "</section>"
    )


def _player(wave: np.ndarray | None, label: str, error: str | None) -> str:
    if wave is None:
        return f"<p class=failed>no audio{escape(f': {error}' if error else '')}</p>"
    data = base64.b64encode(encode_audio(wave, RATE_24K, ".flac")).decode()
    # Metadata, for the length to be seen before it is played.
    return f'<audio controls preload="metadata" aria-label="{label}" src="data:audio/flac;base64,{data}"></audio>'


def _runs(comparison: Comparison) -> str:
    columns = [_run(run) for run in (comparison.baseline, comparison.candidate)]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [
        f"<tr><th scope=row>{escape(name)}</th>"
        + "".join(f"<td class=any>{escape(str(column.get(name, '–')))}</td>" for column in columns)
        + "</tr>"
        for name in names
    ]
    return _table(("", "Baseline", "Candidate"), rows)


def _run(run: RunFacts) -> dict[str, Any]:
    device = run.peak_device_bytes
    return {
        "model": run.model,
        **run.machine,
        "loading": f"{run.load_seconds:.1f} s",
        "speaking": f"{run.audio_seconds:.1f} s of audio"
        + ("" if run.speaking_seconds is None else f" in {run.speaking_seconds:.1f} s"),
        "peak host memory": f"{run.peak_host_bytes / 2**20:.0f} MiB",
        "peak device memory": "–" if device is None else f"{device / 2**20:.0f} MiB",
    }


def _table(head: Sequence[str], rows: Sequence[str], numbers: int | None = None) -> str:
    """A table whose columns from `numbers` on hold figures."""
    cells = [
        f"<th scope=col{' class=n' if numbers is not None and i >= numbers else ''}>{name}</th>"
        if name
        else "<td></td>"
        for i, name in enumerate(head)
    ]
    return f"<table><thead><tr>{''.join(cells)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
