"""`chatterbox-vllm models`: which models there are, what of them is on this machine, and what fits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chatterbox_vllm.cli.arguments import from_settings
from chatterbox_vllm.cli.options import JsonOption
from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, check_writable, write_json

if TYPE_CHECKING:
    from chatterbox_vllm.setup.catalogue import KnownModel

_GIB = 1 << 30
_SPELLED_OUT = 3  # languages; more are counted


@from_settings()
def models(*, json: JsonOption = None) -> None:
    """List the models that --model takes by name: languages, licence, size, what is on this machine, what fits it."""
    if json is not None:
        check_writable(json)
    from chatterbox_vllm.cli.tables import Grid, show
    from chatterbox_vllm.setup.catalogue import known_models

    found = known_models()
    if json is not None:
        write_json(json, [model.as_dict() for model in found])
    if json == STANDARD_OUTPUT:
        return
    head = ("model", "languages", "licence", "size", "on this machine", f"on {found[0].device}", "on cards of")
    show(Grid("", [_row(model) for model in found], head))


def _row(model: KnownModel) -> tuple[str, ...]:
    names = list(model.languages.values())
    languages = ", ".join(names) if len(names) <= _SPELLED_OUT else f"{len(names)}: {', '.join(model.languages)}"
    there = "to download" if model.directory is None else "yes"
    if model.needed_bytes is None:
        fits = f"no tier is free: {model.free_bytes / _GIB:.1f} GiB are"
    else:
        fits = f"{'fits' if model.fits else 'too large'}: {model.needed_bytes / _GIB:.1f} of "
        fits += f"{model.free_bytes / _GIB:.1f} GiB free"
    cards = f"{model.tiers[0]} GB and more" if model.tiers else "none"
    return model.name, languages, model.licence, f"{model.bytes / _GIB:.2f} GiB", there, fits, cards
