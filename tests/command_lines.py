"""Command lines as documents show them, read by the commands without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from chatterbox_vllm.cli.app import app
from chatterbox_vllm.cli.run import PROGRAM

_BASH = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def all_commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words, `voices add` too."""
    pending: list[tuple[str, Any]] = [(PROGRAM, typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        yield name, command
        if isinstance(command, TyperGroup):
            pending += [(f"{name} {word}", below) for word, below in command.commands.items()]


def options_of(command: Any) -> set[str]:
    """All spellings of a command's options."""
    return {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}


def parse(words: Sequence[str]) -> None:
    """Read the words of a command line, its program's name left out; raises where they cannot be read."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while isinstance(command, TyperGroup) and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    assert not isinstance(command, TyperGroup) or rest in (["--help"], ["--version"]), words
    if rest[-1:] not in (["--help"], ["--version"]):
        command.make_context(PROGRAM, rest)


def lines_of(path: Path) -> list[list[str]]:
    """The words of each command line in a document's bash blocks."""
    blocks = _BASH.findall(path.read_text(encoding="utf-8"))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]
