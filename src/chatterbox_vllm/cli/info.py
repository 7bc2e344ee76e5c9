"""`chatterbox-vllm info`: versions, device, settings in force, and what a model's files hold."""

from __future__ import annotations

from typing import Annotated

import typer

from chatterbox_vllm.cli.arguments import from_settings
from chatterbox_vllm.cli.options import DeviceOption, JsonOption
from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, check_writable, write_json


@from_settings()
def info(
    *,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="look at this model's files, as --model of say names it",
            show_default="only the published sizes",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="commit, branch or tag of a hub id", show_default=False)
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Show versions, the device, what would run where, the settings in force, and a model's files and sizes."""
    if json is not None:
        check_writable(json)
    from chatterbox_vllm.cli.tables import info_tables, show
    from chatterbox_vllm.setup.machine import collect

    facts = collect(model, device, revision)
    if json is not None:
        write_json(json, facts)
    if json != STANDARD_OUTPUT:
        show(*info_tables(facts))
