"""The table of the parity tests at the end of a run.

What a test finds travels with its report, so that the table is whole where tests run in several processes.
"""

from __future__ import annotations

from typing import Any

import pytest

_ROW, _ABSENT = "parity", "parity absent"
_fresh: list[tuple[str, Any]] = []  # since the last report of this process
_rows: list[tuple[str, float, float]] = []
_absent: dict[str, str] = {}  # stage -> why some of its checks did not run


def note(stage: str, error: float, bound: float) -> None:
    """A check's largest error and its bound; what follows a colon in `stage` names the case."""
    _fresh.append((_ROW, (stage, error, bound)))


def note_absent(stage: str, reason: str) -> None:
    """Some checks of a stage cannot run."""
    _fresh.append((_ABSENT, (stage, reason)))


def attach(report: pytest.TestReport) -> None:
    """Give a report what was noted since the last one."""
    report.user_properties += _fresh
    _fresh.clear()


def collect(report: pytest.TestReport) -> None:
    """Take in what a report carries, in the process that prints."""
    for name, value in report.user_properties:
        if name == _ROW:
            _rows.append(tuple(value))
        elif name == _ABSENT:
            _absent.setdefault(*value)


def write(terminal: Any) -> None:
    """Each stage's largest error against its bound."""
    if not _rows and not _absent:
        return
    worst: dict[str, tuple[float, float, int]] = {}
    for stage, error, bound in _rows:
        key = stage.partition(":")[0]
        seen, _, count = worst.get(key, (0.0, bound, 0))
        worst[key] = (max(seen, error), bound, count + 1)
    terminal.section("parity with the published implementation (float32, CPU)")
    terminal.write_line(f"{'stage':<44} {'largest error':>14} {'bound':>10} {'checks':>7}")
    for stage, (error, bound, count) in worst.items():
        limit = "identical" if bound == 0 else f"{bound:.0e}"
        shown = f"{int(error)} differ" if bound == 0 else f"{error:.2e}"
        terminal.write_line(f"{stage:<44} {shown:>14} {limit:>10} {count:>7}")
    for stage, reason in _absent.items():
        terminal.write_line(f"{stage:<44} not all checked: {reason}")
