"""Where commands write their findings to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from typing_extensions import Self

from chatterbox_vllm.errors import OutputError

STANDARD_OUTPUT = Path("-")


class StandardOutput(TextIOWrapper):
    """Standard output that raises OutputError where it cannot be written, at whatever print that happens.

    A pipe whose reader has gone stays a BrokenPipeError. A terminal may lack characters of ours, and a path may hold
    bytes that are no text: both are escaped.
    """

    @classmethod
    def in_place_of(cls, stream: TextIOWrapper) -> Self:
        """The stream's successor; the stream itself is of no use after that."""
        encoding, line, through = stream.encoding, stream.line_buffering, stream.write_through
        stream.flush()
        return cls(stream.detach(), encoding, "backslashreplace", None, line, through)

    def write(self, text: str) -> int:
        with _output_told():
            return super().write(text)

    def flush(self) -> None:
        with _output_told():
            super().flush()


@contextmanager
def _output_told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output cannot be written ({error.strerror}); send it elsewhere") from error


def check_writable(path: Path) -> None:
    """Costs nothing, so ask before the long work.

    Raises:
        OutputError: `write_text` could not write there.
    """
    if path == STANDARD_OUTPUT:
        return
    if path.is_dir():
        raise OutputError(f"{path} is a directory; name a file")
    if not path.resolve().parent.is_dir():
        raise OutputError(f"{path}: there is no directory {path.parent}; make it first")
    # Not by opening it: whoever reads a pipe would take that for its end.
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise OutputError(f"{path}: no permission to write there; name another file")


def write_text(path: Path, text: str) -> None:
    """Raises OutputError if the file cannot be written."""
    if path == STANDARD_OUTPUT:
        print(text, end="", flush=True)
        return
    try:
        # A path that is not UTF-8 may stand among a model's options.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def write_json(path: Path, data: Any) -> None:
    """Raises OutputError if the file cannot be written."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def beside(output: Path | None) -> TextIO:
    """Where words for a person go: standard error where the results themselves go to standard output."""
    return sys.stderr if output == STANDARD_OUTPUT else sys.stdout


def claim_standard_output() -> BinaryIO:
    """Standard output for bytes; whatever this process prints from now on goes to standard error.

    Raises:
        OutputError: it is a terminal.
    """
    if sys.stdout.isatty():
        raise OutputError("audio is not for a terminal: send standard output to a file or a program, or name a file")
    sys.stdout.flush()
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own
