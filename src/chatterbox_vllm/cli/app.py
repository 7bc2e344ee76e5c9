"""All commands by name. Their modules import what they run with only when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from chatterbox_vllm import __version__
from chatterbox_vllm.cli import (
    batch,
    bench,
    convert,
    download,
    estimate,
    evaluate,
    info,
    methods,
    models,
    quantize,
    say,
    serve,
    voices,
)
from chatterbox_vllm.cli.arguments import Command
from chatterbox_vllm.cli.run import PROGRAM, Commands

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name=PROGRAM,
    cls=Commands,
    help="Chatterbox text-to-speech on vLLM. Every command has a --help of its own.",
    context_settings=_HELP,
    pretty_exceptions_enable=False,
)
for command in (
    say.say,
    batch.batch,
    bench.bench,
    convert.convert,
    download.download,
    estimate.estimate,
    evaluate.evaluate,
    info.info,
    methods.methods,
    models.models,
    quantize.quantize,
    serve.serve,
):
    app.command(cls=Command, context_settings=_HELP)(command)


_voices = typer.Typer(
    help="Voices by name: list, play, show; add, remove and alias those of your own.", context_settings=_HELP
)
for command in (
    voices.add,
    voices.list_,
    voices.play,
    voices.show,
    voices.remove,
    voices.alias,
    voices.sweep,
):
    _voices.command(command.__name__.rstrip("_"), cls=Command, context_settings=_HELP)(command)
for name, command in (("save", voices.add), ("delete", voices.remove)):  # what they were called
    _voices.command(name, cls=Command, context_settings=_HELP, hidden=True)(command)
app.add_typer(_voices, name="voices")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
