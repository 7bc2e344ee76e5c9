"""How a command ends. Errors are one line on standard error and exit status 2; Ctrl-C exits with 130.

SIGTERM and SIGHUP put away what was begun, too, and exit with 143 and 129.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO

import typer
from typer.core import TyperGroup

from chatterbox_vllm.cli import process
from chatterbox_vllm.cli.interrupts import Ended, endings_raised, keep_interrupts
from chatterbox_vllm.cli.outputs import StandardOutput
from chatterbox_vllm.errors import ChatterboxError, OutputError

PROGRAM = "chatterbox-vllm"
FAILED, INTERRUPTED = 2, 130
_SIGNALLED = 128  # statuses above it name a signal


class _Stopped(Exception):
    """The command has ended before it was through, with the exit status that is its argument."""


@contextmanager
def _stops_told() -> Iterator[None]:
    """Tell of what ends a command early. It goes up as `_Stopped`, since Typer would give it a status of its own."""
    try:
        yield
    except Ended as end:
        with suppress(OSError):  # the terminal may be gone
            print(f"{PROGRAM}: ended by {end.signal.name}", file=sys.stderr)
        raise _Stopped(_SIGNALLED + end.signal) from None
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        raise _Stopped(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise _Stopped(FAILED) from None


class Commands(TyperGroup):
    """All commands, each stage of which may be stopped: reading the words, and running what they name."""

    def make_context(self, *arguments: Any, **keywords: Any) -> Any:
        with _stops_told():
            return super().make_context(*arguments, **keywords)

    def invoke(self, ctx: Any) -> int:
        with _stops_told():
            return int(super().invoke(ctx) or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    try:
        with _stops_told():
            from chatterbox_vllm.cli.app import app

            command = typer.main.get_command(app)
        return int(command.main(arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
    except _Stopped as stopped:
        return int(stopped.args[0])
    except ChatterboxError as error:
        return _fail(str(error))
    except typer.TyperException as error:
        where = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
        return _fail(f"{_usage(error)} (see {where} --help)")


def entry() -> NoReturn:
    """The installed command. It ends at once: taking all modules apart took Python 4 s after `say`.

    After an interrupt not even exit functions run: what has been torn from its work may hang in them.
    """
    process.take()
    # Threads that spin while they wait for each other took ten times as long where other processes want the cores, too.
    # Waiting without spinning costs T3 a fifth on idle cores. So they spin for a moment, 0.1 ms on an AMD EPYC, and
    # then sleep. That was as fast as spinning there, and as fast as sleeping beside two busy processes. A user's own
    # OMP_WAIT_POLICY stands.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout = StandardOutput.in_place_of(sys.stdout)
    keep_interrupts()
    with endings_raised():
        status = main()
    status = _flushed(status)
    if status <= _SIGNALLED:
        atexit._run_exitfuncs()
    os._exit(status)


def _flushed(status: int) -> int:
    """The exit status, once everything is written that was printed."""
    streams: list[TextIO | None] = [sys.stdout, sys.stderr]  # None where the caller closed them
    output, errors = streams
    try:
        if output is not None:
            output.flush()
    except BrokenPipeError:
        status = status or FAILED
    except OutputError as error:
        status = status or _fail(str(error))
    if errors is not None:
        with suppress(OSError):  # the terminal may be gone
            errors.flush()
    return status


def _fail(message: str) -> int:
    print(f"{PROGRAM}: error: " + " ".join(message.split()), file=sys.stderr)
    return FAILED


def _usage(error: typer.TyperException) -> str:
    """What is wrong with the words of a command, with the value that was given."""
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    problems: list[Any] = getattr(
        error.__cause__, "errors", list
    )()  # pydantic's, where a value is not of its option's type
    given = [repr(problem["input"]) for problem in problems if isinstance(problem.get("input"), str)]
    return message + "".join(f", not {value}" for value in given if value not in message)
