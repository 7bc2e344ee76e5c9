"""Rows of a CSV file as spreadsheets write them: any of their delimiters, empty rows and columns, quotes that err."""

from __future__ import annotations

import csv
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from chatterbox_vllm.errors import ConfigError

# Excel writes the list separator of the user's country, a semicolon where numbers have a decimal comma.
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_EXCEL_SAYS = re.compile(r"sep=(.)\s*")
# A quoted text may have paragraphs; one that goes on for longer was never closed. It bounds what is kept to read again.
_MOST_LINES, _MOST_CHARACTERS = 20_000, 4_000_000

# What a line holds: a cell for each column that has a name and something in it, or what is wrong with the line.
Cells = dict[str, str] | str


def csv_rows(file: IO[str], known: Sequence[str], name: str) -> Iterator[tuple[int, Cells]]:
    """The rows below the header, each with its line: the last of the row's lines, or the first of a row that errs.

    A quote that is never closed, or closed in the middle of a cell, makes an error of its own line; the next line
    begins a new row. Rows whose cells are all empty are left out.

    Args:
        file: opened with newline="".
        known: the names that columns may have.
        name: the file's, for errors.

    Raises:
        ConfigError: the first line does not name the columns.
    """
    csv.field_size_limit(sys.maxsize)  # a text may be a book
    lines = _Lines(file)
    first = next(lines, "")
    told = _EXCEL_SAYS.fullmatch(first)
    if told:
        first = next(lines, "")
    delimiter, header = _header(first, (told[1],) if told else tuple(_DELIMITERS), known, name)
    for line, cells in _records(lines, delimiter):
        if isinstance(cells, str):
            yield line, cells
        elif any(cell.strip() for cell in cells):
            yield line, _named(header, cells, delimiter)


def _header(line: str, delimiters: Sequence[str], known: Sequence[str], name: str) -> tuple[str, list[str]]:
    """The delimiter under which the line names columns, and their names in lower case, "" for one without."""
    found = []
    for delimiter in delimiters:
        header = [cell.strip().lower() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        names = [cell for cell in header if cell]
        if "text" in names and set(names) <= set(known) and len(set(names)) == len(names):
            return delimiter, header
        found.append(names)
    shown = ", ".join(map(repr, max(found, key=lambda names: len(names)))) or "nothing"
    raise ConfigError(
        f"{name}: the first line must name the columns, with commas, semicolons or tabs between them: text and, once "
        f"each, any of {', '.join(n for n in known if n != 'text')}; it holds {shown}"
    )


def _named(header: Sequence[str], cells: Sequence[str], delimiter: str) -> Cells:
    values = {}
    for i, cell in enumerate(cells):
        # An empty cell says nothing, but for the text; Excel fills rows up with them.
        column = header[i] if i < len(header) else ""
        if column == "text" or (column and cell.strip()):
            values[column] = cell
        elif cell.strip() and i >= len(header):
            signs = _DELIMITERS.get(delimiter, repr(delimiter))
            return f"{len(cells)} cells for {len(header)} columns; quote texts that hold {signs}"
        elif cell.strip():
            return f"column {i + 1} holds {cell.strip()[:40]!r} and has no name in the first line"
    return values


class _Lines:
    """Lines of a file that can be put back, and those that were read since `begin`."""

    def __init__(self, file: Iterable[str]):
        self._file = iter(file)
        self._again: deque[str] = deque()
        self._read: list[str] = []
        self._characters = 0
        self.number = 0  # of the last line read, from 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self._read) >= _MOST_LINES or self._characters > _MOST_CHARACTERS:
            raise csv.Error("a quote is never closed")
        line = self._again.popleft() if self._again else next(self._file)
        self.number += 1
        self._read.append(line)
        self._characters += len(line)
        return line

    def begin(self) -> None:
        """What was read so far is done with."""
        self._read, self._characters = [], 0

    def put_back_all_but_first(self) -> int:
        """Let the lines since `begin` be read again, without the first; returns that one's number."""
        first = self.number - len(self._read) + 1
        self._again.extendleft(reversed(self._read[1:]))
        self.number = first
        return first


def _records(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = lines.number
            line = lines.put_back_all_but_first()
            where = f"(read on to line {last})" if last > line else f"({error})"
            yield line, f'a quote of this line is not closed where its cell ends {where}; close it, or double it as ""'
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        yield lines.number, cells
