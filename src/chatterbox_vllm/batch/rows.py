"""The rows of an input: .txt, .jsonl or .csv, read one at a time however many there are."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from chatterbox_vllm.batch.csv_rows import csv_rows
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import ConfigError

FORMATS = ("txt", "jsonl", "csv")
STANDARD_INPUT = "-"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# With a suffix and what marks an unfinished file, a name stays below the 255 bytes of Linux file systems.
_MAX_ID_BYTES = 200
_UNSAFE = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_PARAMETERS = {
    f.name: int if f.name in ("top_k", "max_tokens", "diffusion_steps", "seed") else float
    for f in fields(SpeechParameters)
}
_KEYS = ("text", "id", "voice", "norm_loudness", "language", *_PARAMETERS)


# Yields each row's line and its values, or what is wrong with it.
Reader = Callable[[IO[str]], Iterator[tuple[int, dict[str, Any] | str]]]


@dataclass(frozen=True)
class Row:
    """One text of the input.

    Attributes:
        index: place among the rows, from 0.
        line: of the input, from 1; where a row has several, the last one, or the first of a row that cannot be read.
        id: names the audio file; the index in seven digits where the input names none.
        voice: reference clip or saved voice, or None.
        parameters: fields of `SpeechParameters` that the row sets.
        error: why the row cannot be spoken, or None.
        language: of the text, or None.
        norm_loudness: of the clip that the row names, or None.
    """

    index: int
    line: int
    id: str
    text: str = ""
    voice: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    language: str | None = None
    norm_loudness: bool | None = None

    def __str__(self) -> str:
        return f"row {self.index} (line {self.line}, id {self.id!r})"


class Input:
    """An input file, opened once; standard input and pipes are copied to a temporary file, as rows are read twice.

    Use it as a context manager.

    Attributes:
        name: for messages.
        directory: where relative paths of voices begin: the file's own, or the current one for standard input.
        digest: of the contents.

    Raises:
        ConfigError: it cannot be read, or its format is unknown.
    """

    def __init__(self, path: str, format: str | None = None):
        self.name = "standard input" if path == STANDARD_INPUT else path
        self.directory = Path() if path == STANDARD_INPUT else Path(path).parent
        self.format = format or Path(path).suffix.lower().lstrip(".")
        if self.format not in FORMATS:
            raise ConfigError(
                f"{self.name}: unknown kind of input; name the file .txt, .jsonl or .csv, or give --format"
            )
        try:
            self._file = _open(path)
            if self._file.read(2) in _UTF_16:
                self._file.close()
                raise ConfigError(f"{self.name}: is UTF-16; save it as UTF-8 (in Excel: CSV UTF-8)")
            self._file.seek(0)
            self.digest = hashlib.file_digest(self._file, "blake2b").hexdigest()[:32]
            self._state = self._stat()
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot be read ({error.strerror or error})") from error

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def rows(self) -> Iterator[Row]:
        """All rows from the first; one iterator at a time, as they share the place in the file.

        A line that cannot be used is a row with an `error`. Empty lines, and rows of empty cells, are no rows.

        Raises:
            ConfigError: a .csv without the right columns; an input that changed while it was read.
        """
        descriptor = os.dup(self._file.fileno())
        os.lseek(descriptor, 0, os.SEEK_SET)
        # Bytes that are no UTF-8 become surrogates, which are then found in the row that holds them.
        newline = "" if self.format == "csv" else None
        with open(descriptor, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as text:
            readers: dict[str, Reader] = {
                "txt": _text_lines,
                "jsonl": _json_lines,
                "csv": partial(_cells, name=self.name),
            }
            for index, (line, values) in enumerate(readers[self.format](text)):
                yield _row(index, line, values)
        if self._stat() != self._state:
            raise ConfigError(f"{self.name}: was changed while it was read; start again when it is complete")

    def check(self) -> int:
        """The number of rows, after making sure that each has an id of its own that can name a file.

        Memory: 8 bytes a row. Ids are compared by 64-bit hashes; the few that seem to repeat are read again.

        Raises:
            ConfigError: the first bad id, or ids that repeat; there are no rows.
        """
        hashes = array("Q")
        for row in self.rows():
            fault = _fault_of_id(row.id)
            if fault:
                raise ConfigError(f"{self.name}: {row}: {fault}; the id names the row's audio file")
            hashes.append(_hash(row.id))
        if not hashes:
            raise ConfigError(f"{self.name}: there are no rows to speak")
        values = np.sort(np.frombuffer(hashes, np.uint64))
        repeated = {int(value) for value in values[1:][values[1:] == values[:-1]][:1000]}
        if repeated:
            seen: dict[str, Row] = {}
            for row in self.rows():
                if _hash(row.id) in repeated:
                    first = seen.setdefault(row.id, row)
                    if first is not row:
                        raise ConfigError(f"{self.name}: {row} has the same id as {first}; each needs its own")
        return len(hashes)


def _open(path: str) -> Any:
    """A file that can be read more than once."""
    file: Any = sys.stdin.buffer
    if path != STANDARD_INPUT:
        named = Path(path)
        file = named.open("rb")
        if file.seekable():
            return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the input
    shutil.copyfileobj(file, copy)
    copy.seek(0)
    return copy


def _text_lines(file: IO[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, {"text": line.strip()}


def _json_lines(file: IO[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON ({error})"
            continue
        yield number, values if isinstance(values, dict) else 'a row is a JSON object, such as {"text": "Hello."}'


def _cells(file: IO[str], name: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for line, cells in csv_rows(file, _KEYS, name):
        yield line, cells if isinstance(cells, str) else {key: _value(key, cell) for key, cell in cells.items()}


def _value(key: str, cell: str) -> Any:
    """What a cell says: a text as it stands, a number where one is wanted, also with a decimal comma."""
    if key == "text":
        return cell
    cell = cell.strip()
    if key == "norm_loudness":
        return {"true": True, "false": False}.get(cell.lower(), cell)
    if key not in _PARAMETERS:
        return cell
    for kind in (int, float):
        try:
            return kind(cell if _PARAMETERS[key] is int else cell.replace(",", "."))
        except ValueError:
            pass
    return cell


def _row(index: int, line: int, values: dict[str, Any] | str) -> Row:
    """The row of parsed values, or of the error that parsing met."""
    fallback = f"{index:07d}"
    if isinstance(values, str):
        return Row(index, line, fallback, error=values)
    values = {key: value for key, value in values.items() if value is not None}
    given = values.pop("id", fallback)
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        return Row(index, line, fallback, error=f"id must be a string or an integer, not {given!r}")
    try:
        text, voice = _text(values.pop("text", "")), _voice(values.pop("voice", None))
        language = _language(values.pop("language", None))
        norm_loudness = _norm_loudness(values.pop("norm_loudness", None), voice)
        return Row(
            index, line, str(given), text, voice, _parameters(values), language=language, norm_loudness=norm_loudness
        )
    except ConfigError as error:
        return Row(index, line, str(given), error=str(error))


def _text(text: object) -> str:
    if not isinstance(text, str) or not any(map(str.isalnum, _encodable("text", text))):
        raise ConfigError("there is no text to speak; give at least one word")
    return text


def _voice(voice: object) -> str | None:
    if voice is None:
        return None
    if not isinstance(voice, str) or not voice or "\0" in voice:
        raise ConfigError(f"voice must be the path of an audio file or a saved voice, not {voice!r}")
    return _encodable("voice", voice)


def _language(language: object) -> str | None:
    if language is None:
        return None
    if not isinstance(language, str) or not language.strip():
        raise ConfigError(f"language must be a code such as 'de' or an English name, not {language!r}")
    return _encodable("language", language)


def _norm_loudness(wanted: object, voice: str | None) -> bool | None:
    if wanted is not None and not isinstance(wanted, bool):
        raise ConfigError(f"norm_loudness must be true or false, not {wanted!r}")
    if wanted is not None and voice is None:
        raise ConfigError("norm_loudness is of a clip: name one as the row's voice, too, or leave it out")
    return wanted


def _encodable(name: str, value: str) -> str:
    """The value, unless it holds half of a character, which comes of broken JSON or of bytes that are no UTF-8."""
    half = next((i for i, character in enumerate(value) if "\ud800" <= character <= "\udfff"), None)
    if half is None:
        return value
    if value[half] >= "\udc80" and value[half] <= "\udcff":
        raise ConfigError(f"{name} is not UTF-8 at character {half + 1}; convert the input")
    raise ConfigError(
        f"{name} holds half of a surrogate pair at character {half + 1} ({value[half]!r}), which cannot be written as "
        "UTF-8; mend what wrote the row"
    )


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    """What a row says of how to speak, checked; 10.0 counts as 10, as spreadsheets and data frames write integers."""
    unknown = [key for key in values if key not in _PARAMETERS]
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    whole = {
        key: int(value)
        if _PARAMETERS[key] is int and isinstance(value, float) and math.isfinite(value) and value == int(value)
        else value
        for key, value in values.items()
    }
    SpeechParameters(**whole)
    return whole


def _fault_of_id(id: str) -> str | None:
    if not id or id != id.strip() or id.startswith("."):
        return "an id must not be empty, begin with a dot, or begin or end with white space"
    if _UNSAFE.search(id):
        return "an id must not hold slashes, backslashes, control characters or bytes that are no UTF-8"
    if len(id.encode()) > _MAX_ID_BYTES:
        return f"an id must not be longer than {_MAX_ID_BYTES} bytes"
    return None


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")
