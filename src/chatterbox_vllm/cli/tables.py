"""Results as tables: drawn with Rich on a terminal, plain columns where a program or a file reads them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

_MIB = 1 << 20
_WIDEST = 10_000  # plain columns are never broken


@dataclass(frozen=True)
class Grid:
    """Cells under an optional title and head. Where they hold numbers, all columns but the first end at the right."""

    title: str
    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    numbers: bool = False


def show(*grids: Grid, file: TextIO | None = None) -> None:
    """Print grids one below the other."""
    file = file or sys.stdout
    print("\n\n".join(drawn(grid, file.isatty()) for grid in grids), file=file, flush=True)


def drawn(grid: Grid, terminal: bool = False) -> str:
    """A grid as text."""
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=ROUNDED if terminal else None,
        show_header=bool(grid.head),
        pad_edge=terminal,
        padding=(0, 1) if terminal else (0, 2, 0, 0),
    )
    columns = len(grid.head) or max(map(len, grid.rows))
    for i in range(columns):
        head = Text(grid.head[i], style="bold" if terminal else "") if grid.head else ""
        table.add_column(head, justify="right" if grid.numbers and i else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    width = shutil.get_terminal_size().columns if terminal else _WIDEST
    console = Console(width=width, force_terminal=terminal, highlight=False, legacy_windows=False)
    with console.capture() as captured:
        if grid.title:
            console.print(Text(grid.title, style="bold" if terminal else ""))
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def of_rows(rows: Sequence[Mapping[str, Any]], title: str = "") -> Grid:
    """Several rows as lines under the names of their values; a single one as a line for each of its values."""
    if len(rows) == 1:
        return Grid(title, [(name, cell(value)) for name, value in rows[0].items()])
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Grid(title, [[cell(row.get(name)) for name in names] for row in rows], names, numbers=True)


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> Grid:
    """`bench.upstream.side_by_side_rows`, a column a row; the last two are our values divided by the package's."""
    names = [name for name in rows[0] if name not in ("stage", "engine", "how", "failed")]
    lines = [[name, *("" if row.get(name) is None else f"{row[name]:.5g}" for row in rows)] for name in names]
    failed = [str(len(row["failed"])) if "failed" in row else "" for row in rows]
    head = ["", *(f"{row['engine']}\n{row['how']}" for row in rows)]
    return Grid("", [*lines, ["failed", *failed]], head, numbers=True)


def memory_table(name: str, estimate: Any, budget: int) -> Grid:
    """A `MemoryEstimate` against a tier's budget."""
    rows = [(what, _mib(size)) for what, size in estimate.device.items()]
    rows.append(("on the device, together", _mib(estimate.device_total)))
    rows.append(("the tier's budget", _mib(budget)))
    rows += [(f"{what}, on the host", _mib(size)) for what, size in estimate.host.items()]
    return Grid(f"{name}:", rows, numbers=True)


def info_tables(facts: Mapping[str, Any]) -> list[Grid]:
    """What `setup.machine.collect` found."""
    device, model = facts["device"], facts["model"]
    machine = [
        ("chatterbox-vllm", f"{facts['chatterbox-vllm']}, Python {facts['python']}, {facts['platform']}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)),
        ("device", device.get("name", f"none ({device.get('error')})")),
    ]
    if "stages" in device:
        machine.append(("would run", ", ".join(f"{stage} on {place}" for stage, place in device["stages"].items())))
    for component, methods in facts["quantization"].items():
        machine.append((f"quantization of {component}", ", ".join(methods) or "none can be had here"))
    settings = [(name, setting["value"], setting["from"]) for name, setting in facts["settings"].items()]
    grids = [
        Grid("", machine),
        Grid("Settings that the environment may decide", settings, ("variable", "value", "from")),
    ]
    if model["directory"]:
        held = [("family", model["family"]), ("revision", model["revision"] or "none, not a snapshot of a hub's")]
        held.insert(1, ("speaks", ", ".join(model["languages"].values())))
        held += [(f"{part} is quantized", method or "no") for part, method in model["quantized"].items()]
        grids += [Grid(f"Model {model['directory']}", held), _files(model["files"])]
    sizes = [
        (name, f"{size['parameters'] / 1e6:.1f} M", _mib(size["float32_bytes"]))
        for name, size in model["components"].items()
    ]
    title = "" if model["directory"] else "The published sizes"
    return [*grids, Grid(title, sizes, ("component", "parameters", "in float32"), numbers=True)]


def _files(files: Mapping[str, Any]) -> Grid:
    rows = []
    for name, file in files.items():
        dtypes = ", ".join(file.get("dtypes", ())) if file else ""
        rows.append((name, dtypes, _mib(file["bytes"]) if file else "missing"))
    return Grid("", rows, ("file", "dtypes", "size"), numbers=True)


def cell(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(inner)}" for name, inner in value.items())
    return (", ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value)


def _mib(size: int) -> str:
    return f"{size / _MIB:.1f} MiB"
