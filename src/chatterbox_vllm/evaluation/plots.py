"""The report's pictures, each an SVG element to stand inside a page."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from chatterbox_vllm.evaluation.compare import CaseFigures

_BASELINE, _CANDIDATE = "#2b6cb0", "#c05621"
_WINDOW = 25  # positions that a curve averages over: one second of speech


def position_curves(cases: Sequence[CaseFigures]) -> str:
    """Divergence and agreement of T3 by position, averaged over the cases that reach it and over one second."""
    longest = max((len(figures.kl) for figures in cases), default=0)
    if not longest:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, label in ((left, "kl", "divergence, nats"), (right, "top1", "same likeliest token")):
        x, y = _by_position([getattr(figures, name) for figures in cases], longest)
        axes.plot(x / 25, y, color=_CANDIDATE)
        axes.set(xlabel="seconds of speech", ylabel=label)
        axes.set_ylim(bottom=0, top=1.02 if name == "top1" else None)
        axes.grid(alpha=0.3)
    return _svg(figure)


def divergence_histogram(cases: Sequence[CaseFigures]) -> str:
    """How often which divergence was met, on a logarithmic axis; infinite ones are counted at its end."""
    kl = np.concatenate([figures.kl for figures in cases]) if cases else np.zeros(0)
    if not len(kl):
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.hist(np.clip(kl, 1e-9, 1e3), bins=np.logspace(-9, 3, 73).tolist(), color=_CANDIDATE)
    axes.set(xscale="log", xlabel="divergence at a position, nats", ylabel="positions")
    axes.grid(alpha=0.3)
    return _svg(figure)


def mel_pictures(baseline: np.ndarray, candidate: np.ndarray) -> str:
    """Two mels [frames, bins] of the same tokens and noise, and their difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2), layout="constrained")
    low, high = float(np.nanmin(baseline)), float(np.nanmax(baseline))
    pictures: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("baseline", baseline, {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("candidate", candidate, {"vmin": low, "vmax": high, "cmap": "magma"}),
        ("difference, ±1 nat", candidate - baseline, {"vmin": -1, "vmax": 1, "cmap": "coolwarm"}),
    ]
    for axes, (title, mel, options) in zip(figure.subplots(1, 3), pictures, strict=True):
        axes.imshow(mel.T, origin="lower", aspect="auto", extent=(0, len(mel) / 50, 0, mel.shape[1]), **options)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
    return _svg(figure)


def _by_position(series: Sequence[np.ndarray], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over the series and over windows of positions: x [n] (the windows' middles) and y [n]."""
    table = np.full((len(series), longest), np.nan)
    for row, values in zip(table, series, strict=True):
        row[: len(values)] = np.where(np.isfinite(values), values, np.nan)
    starts = range(0, longest, _WINDOW)
    windows = [table[:, start : start + _WINDOW] for start in starts]
    x = np.array([start + window.shape[1] / 2 for start, window in zip(starts, windows, strict=True)])
    y = np.array([np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows])
    return x, y


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=110, metadata={"Date": None})
    picture = buffer.getvalue()
    # An element of a page has neither an XML declaration nor a document type, and its ids must be its own.
    picture = picture[picture.index("<svg") :]
    tag = "p" + hashlib.blake2s(picture.encode(), digest_size=4).hexdigest()
    return re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>{tag}-", picture)
