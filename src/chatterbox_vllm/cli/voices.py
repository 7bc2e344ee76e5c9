"""`chatterbox-vllm voices`: voices that are saved by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chatterbox_vllm.cli.arguments import Keywords, from_settings
from chatterbox_vllm.cli.options import JsonOption, model_config
from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, check_writable, write_json
from chatterbox_vllm.settings import MODEL

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="of a saved voice", show_default=False)]


@from_settings(MODEL)
def save(
    *,
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="a clip of the voice, or a saved voice's file")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="letters, digits, - and _")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a voice of that name")] = False,
    given: Keywords,
    quiet: bool,
) -> None:
    """Enrol the voice of a clip and save it by name, so that --voice NAME speaks with it."""
    from chatterbox_vllm.setup.enrolling import voice_of
    from chatterbox_vllm.voices.library import VoiceLibrary

    library = VoiceLibrary()
    library.check_free(name, overwrite)
    path = library.save(name, voice_of(clip, **given), overwrite)
    if not quiet:
        print(f"{name}: saved in {path}")


@from_settings()
def list_(*, json: JsonOption = None) -> None:
    """List the voices that are saved by name."""
    if json is not None:
        check_writable(json)
    from chatterbox_vllm.cli.tables import Grid, show
    from chatterbox_vllm.voices.library import VoiceLibrary

    library = VoiceLibrary()
    voices = library.voices()
    if json is not None:
        entries = [
            {"name": v.name, "file": str(v.path), "bytes": v.bytes, "saved": v.saved.isoformat(timespec="seconds")}
            for v in voices
        ]
        write_json(json, entries)
    if json == STANDARD_OUTPUT:
        return
    if not voices:
        print(f"no voice is saved in {library.directory}; save one with chatterbox-vllm voices save CLIP NAME")
        return
    rows = [(v.name, f"{v.bytes / 1024:.0f} KiB", f"{v.saved.astimezone():%Y-%m-%d %H:%M}") for v in voices]
    show(Grid(f"In {library.directory}", rows, ("voice", "size", "saved"), numbers=True))


@from_settings(MODEL)
def show(
    *,
    voice: Annotated[str, typer.Argument(metavar="NAME|FILE", help="a saved voice's name or file")],
    json: JsonOption = None,
    given: Keywords,
) -> None:
    """Show what a saved voice holds, and whether a model can use it."""
    if json is not None:
        check_writable(json)
    from chatterbox_vllm.cli import tables
    from chatterbox_vllm.families.registry import DEFAULT_FAMILY
    from chatterbox_vllm.voices.library import VoiceLibrary
    from chatterbox_vllm.voices.voice import Voice

    path = VoiceLibrary().find(voice)
    # Without a model's name, the published sizes are enough and nothing is downloaded.
    found = Voice.load(path, model_config(given) if "model" in given else DEFAULT_FAMILY.config)
    facts = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "T3's speech prompt, tokens": len(found.conditioning.speech_prompt),
        "flow's prompt, tokens": len(found.prompt.tokens),
        "flow's prompt, mel frames": len(found.prompt.mel),
        "fits": given.get("model", DEFAULT_FAMILY.name),
        "key": found.key,
    }
    if json is not None:
        write_json(json, facts)
    if json != STANDARD_OUTPUT:
        tables.show(tables.of_rows([facts]))


@from_settings()
def delete(*, name: NameArgument, quiet: bool) -> None:
    """Delete a voice that is saved by name."""
    from chatterbox_vllm.voices.library import VoiceLibrary

    VoiceLibrary().delete(name)
    if not quiet:
        print(f"{name}: deleted")
