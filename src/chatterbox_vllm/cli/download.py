"""`chatterbox-vllm download`: a model's files ahead of their use."""

from __future__ import annotations

from typing import Annotated

import typer

from chatterbox_vllm.cli.arguments import from_settings


@from_settings()
def download(
    *,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="a family (english, turbo, nano), or a hub id (owner/name)")
    ],
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="commit, branch or tag of a hub id",
            show_default="the family's pinned commit, else the hub's newest",
        ),
    ] = None,
) -> None:
    """Fetch a model's files, so that later starts need no network, and print their directory."""
    from chatterbox_vllm.setup.models import download_model

    print(download_model(model, revision))
