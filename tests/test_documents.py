"""Documents name commands and options that there are, and every command is told of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup

from chatterbox_vllm.settings import BY_KEYWORD
from tests.command_lines import all_commands, lines_of, options_of, parse

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cli.md"
_HEAD = """\
# The command line

Every command has these, too: `--help`; `--verbose` (`-v`) says more, `-vv` everything, vLLM's messages included;
`--quiet` (`-q`) shows only errors and what was asked for, without progress and summary. Progress shows on a terminal
only. `chatterbox-vllm --install-completion` lets the shell complete commands, options and values.

An option that may be repeated (`--only t3 --only s3gen`) takes several words at once (`--only t3 s3gen`), but for a
command that has an argument. `--json FILE` writes results as JSON; with `-` they go to standard output, and the words
for a person go to standard error.

Exit status: 0; 1 where rows of a batch failed or an evaluation's gate did; 2 after an error, which is one line on
standard error; 130 after Ctrl-C, 143 and 129 after SIGTERM and SIGHUP. This page is written from the commands.
"""
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
# Options of start.sh itself, and of programs that are not ours.
_START = {"--reinstall", "--low-vram", "--ultra-low-vram", "--medium-vram", "--high-vram", "--tier"}
_OTHERS = {"--goldens", "--help"}  # of the tests, and of every command
_OLD = {"CHANGELOG.md"}  # tells of options as they were


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_command_lines_can_be_read(path: Path) -> None:
    for program, *words in lines_of(path):
        if program == "./start.sh":
            while words and words[0] in _START:
                words = words[2:] if words[0] == "--tier" else words[1:]
            if words[:1] == ["test"] or not words:
                continue
        elif program != "chatterbox-vllm":
            continue
        parse(words)


def test_options_are_ones_that_there_are() -> None:
    known = {word for _, command in all_commands() for word in options_of(command)} | _START | _OTHERS
    for path in DOCUMENTS:
        if path.name in _OLD:
            continue
        # In backquotes, where an option is named by itself.
        named = re.findall(r"`(--[a-z][\w-]*)", path.read_text(encoding="utf-8"))
        assert set(named) <= known, path


def page() -> str:
    """The text of docs/cli.md."""
    sections = [_HEAD]
    for name, command in sorted(all_commands()):
        if not isinstance(command, TyperGroup):
            sections.append(_section(name.removeprefix("chatterbox-vllm "), command))
    return "\n".join(sections)


def _section(name: str, command: Any) -> str:
    of_settings = {setting.keyword for setting in BY_KEYWORD.values() if setting.option}
    lines = [f"## {name}", "", re.sub(r"(?<=\S)\n(?=\S)", " ", command.help), ""]
    lines += ["| option | default | meaning |", "| --- | --- | --- |"]
    shared = []
    for parameter in command.params:
        if parameter.name in ("verbose", "quiet"):
            continue
        if parameter.name in of_settings and "[default:" in parameter.help:
            shared.append(f"`{parameter.opts[0]}`")
            continue
        names = [parameter.display_name_raw] if parameter.param_type_name == "argument" else parameter.opts
        spelled = ", ".join(f"`{name}`" for name in (*names, *parameter.secondary_opts))
        lines.append(f"| {spelled} | {_default(parameter)} | {parameter.help} |")
    if shared:
        lines += ["", f"Settings ([settings.md](settings.md)): {', '.join(shared)}."]
    return "\n".join(lines) + "\n"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    default = parameter.default
    if isinstance(default, list):
        return " ".join(map(str, default))
    return "" if default in (None, False) else "on" if default is True else str(default)


def test_the_command_line_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.test_documents"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
