"""The report's pictures, each an SVG element to stand inside a page, in the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chatterbox_vllm.evaluation.compare import CaseFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WINDOW = 25  # positions that a curve averages over: one second of speech
# What matplotlib draws with, and what the page puts in its place.
_INK, _DATA = "#010203", "#040506"
_COLOURS = {_INK: "currentColor", _DATA: "var(--data)"}
_INCHES = (3.2, 2.1)  # three beside each other on a desk, one below the other on a phone
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    # Text stays text: it can be read aloud and searched, and takes less room than outlines.
    "svg.fonttype": "none",
    "svg.hashsalt": "chatterbox-vllm",
    "axes.formatter.use_mathtext": True,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), _INK
    ),
}


def position_curves(cases: Sequence[CaseFigures]) -> str:
    """Divergence and agreement of T3 by position, averaged over the cases that reach it and over one second.

    Positions with an infinite divergence are left out of the first curve.
    """
    longest = max((len(figures.kl) for figures in cases), default=0)
    if not longest:
        return ""
    pictures = []
    for name, label in (("kl", "divergence, nats"), ("top1", "same top-1, share")):
        x, y = _by_position([getattr(figures, name) for figures in cases], longest)

        def draw(axes: Axes, name: str = name, label: str = label, x: np.ndarray = x, y: np.ndarray = y) -> None:
            # A mark, as a single point has no line.
            axes.plot(x / _WINDOW, y, color=_DATA, marker=".", markersize=4)
            axes.set(xlabel="seconds of speech", ylabel=label)
            most = float(np.nanmax(y)) if np.isfinite(y).any() else 0.0
            axes.set_ylim(0, 1.05 if name == "top1" else 1.1 * most or 1.0)
            axes.grid(alpha=0.2, color=_INK)

        pictures.append(_picture(f"curve-{name}", f"{label} by seconds of speech", draw))
    return "".join(pictures)


def divergence_histogram(cases: Sequence[CaseFigures]) -> str:
    """How often which divergence was met, on a logarithmic axis; infinite ones are counted at its end."""
    kl = np.concatenate([figures.kl for figures in cases]) if cases else np.zeros(0)
    if not len(kl):
        return ""

    def draw(axes: Axes) -> None:
        axes.hist(np.clip(kl, 1e-9, 1e3), bins=np.logspace(-9, 3, 73).tolist(), color=_DATA)
        axes.set(xscale="log", xlabel="divergence at a position, nats", ylabel="positions")
        axes.grid(alpha=0.2, color=_INK)

    return _picture("histogram", "how many positions have which divergence", draw)


def mel_pictures(index: int, baseline: np.ndarray, candidate: np.ndarray) -> str:
    """Two mels [frames, bins] of a case's same tokens and noise, and their difference.

    Empty where they differ in shape or have no place where both are finite.
    """
    if baseline.shape != candidate.shape:
        return ""
    baseline, candidate = (np.where(np.isfinite(mel), mel, np.nan) for mel in (baseline, candidate))
    difference = candidate - baseline
    if np.isnan(difference).all():
        return ""
    low, high = float(np.nanmin(baseline)), float(np.nanmax(baseline))
    reach = _round_up(float(np.nanmax(np.abs(difference))))
    return "".join(
        [
            _mel(f"mel-{index}-baseline", "baseline", baseline, (low, high), "magma"),
            _mel(f"mel-{index}-candidate", "candidate", candidate, (low, high), "magma"),
            _mel(f"mel-{index}-difference", f"difference, ±{reach:g} nats", difference, (-reach, reach), "coolwarm"),
        ]
    )


def _mel(name: str, title: str, mel: np.ndarray, limits: tuple[float, float], colours: str) -> str:
    def draw(axes: Axes) -> None:
        axes.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            extent=(0, len(mel) / 50, 0, mel.shape[1]),
            vmin=limits[0],
            vmax=limits[1],
            cmap=colours,
            interpolation="none",  # one pixel a value, which the browser scales
        )
        axes.set_title(title, fontsize=8)
        axes.set(xlabel="seconds", ylabel="mel bin")

    return _picture(name, f"mel, {title}", draw)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10 … at any scale; the least is a hundred-thousandth, below which all is alike."""
    value = max(value, 1e-5)
    scale = 10.0 ** np.floor(np.log10(value))
    return float(scale * next(step for step in (1, 2, 5, 10) if step >= value / scale * (1 - 1e-9)))


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


def _picture(name: str, label: str, draw: Callable[[Axes], None]) -> str:
    """What `draw` puts on the axes; `name` is the page's only one, `label` is for those who cannot see it."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        draw(figure.subplots())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", dpi=110, transparent=True, metadata=nothing)
    picture = buffer.getvalue()
    # An element of a page has neither an XML declaration nor a document type, and its ids must be its own.
    picture = picture[picture.index("<svg") :]
    picture = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", picture)
    picture = re.sub(
        r'<svg(.*?) width="\S+" height="\S+"', rf'<svg role="img" aria-label="{label}"\1', picture, count=1
    )
    for drawn, shown in _COLOURS.items():
        picture = picture.replace(drawn, shown)
    return picture
