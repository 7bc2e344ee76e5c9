"""`chatterbox-vllm voices`: voices that are saved by name, and those that come with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chatterbox_vllm.cli.arguments import Keywords, from_settings
from chatterbox_vllm.cli.audio import Destination
from chatterbox_vllm.cli.options import VOICE_HELP, JsonOption, model_config, with_model
from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, check_writable, write_json
from chatterbox_vllm.cli.players import play as sound
from chatterbox_vllm.cli.run import PROGRAM
from chatterbox_vllm.cli.say import speak_to
from chatterbox_vllm.cli.texts import check_text
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.settings import LANGUAGE, MODEL, SPEECH, VOICE

_SENTENCE = "This is how I sound. Would you like to hear more?"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="of a saved voice", show_default=False)]


@from_settings(MODEL, VOICE)
def add(
    *,
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="a clip of the voice, or a saved voice's file")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="letters, digits, - and _")],
    language: Annotated[
        list[str] | None, typer.Option("--language", metavar="TAG", help="what the clip speaks, such as en-US")
    ] = None,
    preview: Annotated[
        bool,
        typer.Option(
            "--preview/--no-preview",
            help="keep the clip's first 15 s, for people and for models of other kinds",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a voice of that name")] = False,
    given: Keywords,
    quiet: bool,
) -> None:
    """Enrol the voice of a clip and save it by name, so that --voice NAME speaks with it.

    A name may have a voice for each kind of model: add it once more with another --model.
    """
    from chatterbox_vllm.voices.naming import check_language, check_voice_name

    check_voice_name(name)
    for tag in language or ():
        check_language(tag)
    from chatterbox_vllm.setup.enrolling import voice_of
    from chatterbox_vllm.voices.entries import About
    from chatterbox_vllm.voices.files import check_voice_file, preview_of_file
    from chatterbox_vllm.voices.library import VoiceLibrary
    from chatterbox_vllm.voices.saved import is_saved_voice

    given, library = with_model(given), VoiceLibrary()
    if not (clip.is_file() and is_saved_voice(clip)):
        check_voice_file(clip)
    config = model_config(given)
    config.enrolment.loudness_of(given.get("norm_loudness"))
    library.check_free(name, config.voice_kind, overwrite)
    voice = voice_of(clip, **given)
    about = About(preview_of_file(clip) if preview else None, tuple(language or ()))
    path = library.save(name, voice, overwrite, about)
    if not quiet:
        print(f"{name}: saved in {path}")


@from_settings(MODEL)
def list_(*, json: JsonOption = None, given: Keywords) -> None:
    """List the voices that are saved by name, and those that come with the model."""
    if json is not None:
        check_writable(json)
    from chatterbox_vllm.cli.tables import Grid, show
    from chatterbox_vllm.voices.library import VoiceLibrary

    library = VoiceLibrary()
    voices, (model, own) = library.voices(), _model_voices(given)
    aliases = library.aliases()
    if json is not None:
        entries: list[dict[str, Any]] = [
            {
                "name": v.name,
                "id": v.id,
                "from": "library",
                "file": str(v.path),
                "bytes": v.bytes,
                "saved": v.saved.isoformat(timespec="seconds"),
                "codebook": v.codebook,
                "recipe": v.recipe,
                "languages": v.languages,
                "preview": None if v.preview is None else str(v.preview),
                "consent": v.consent,
            }
            for v in voices
        ]
        entries += [
            {"name": name, "from": model, "file": str(path), "bytes": path.stat().st_size} for name, path in own.items()
        ]
        entries += [{"name": alias, "from": "alias", "voice": voice} for alias, voice in aliases.items()]
        write_json(json, entries)
    if json == STANDARD_OUTPUT:
        return
    if voices:
        rows = [
            (
                v.name,
                "?" if v.is_plain else (v.kind or "published").removeprefix("+"),
                ", ".join(v.languages),
                "yes" if v.preview else "no",
                f"{v.bytes / 1024:.0f} KiB",
                f"{v.saved.astimezone():%Y-%m-%d %H:%M}",
            )
            for v in voices
        ]
        heads = ("voice", "models", "languages", "preview", "size", "saved")
        show(Grid(f"In {library.directory}", rows, heads, numbers=True))
    else:
        print(f"no voice is saved in {library.directory}; save one with {PROGRAM} voices add CLIP NAME")
    if aliases:
        print(f"aliases: {', '.join(f'{alias} is {voice}' for alias, voice in aliases.items())}")
    if own:
        print(f"with the model {model}: {', '.join(own)}")
    else:
        print(f"the model {model} is not on this machine yet; {PROGRAM} download {model} fetches it with its voices")


def _model_voices(given: Keywords) -> tuple[str, dict[str, Path]]:
    """The model's name, and the files of its voices by their names; none where it would have to be downloaded."""
    from chatterbox_vllm.families.registry import DEFAULT_FAMILY
    from chatterbox_vllm.families.voices import voices_of
    from chatterbox_vllm.setup.models import local_directory

    given = with_model(given)
    directory = local_directory(given.get("model"), given.get("revision"))
    return given.get("model", DEFAULT_FAMILY.name), {} if directory is None else voices_of(directory)


@from_settings(MODEL, SPEECH, VOICE, (LANGUAGE,))
def play(
    *,
    voice: Annotated[str, typer.Argument(metavar="VOICE", help=VOICE_HELP, show_default=False)],
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="what to say", show_default=f"its preview, or where it has none: {_SENTENCE}"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="write there and play nothing", show_default="NAME.wav, and play it"
        ),
    ] = None,
    given: Keywords,
    quiet: bool,
) -> None:
    """Play the clip that a voice was made of, or a text that it speaks."""
    file = output or Path(f"{Path(voice).stem}.wav")
    if text is None and (preview := _preview(voice)) is not None:
        from chatterbox_vllm.audio.decode import decode_audio

        with Destination.of(file, None) as destination:
            destination.write(*decode_audio(preview))
    else:
        if text is None:
            from chatterbox_vllm.families.registry import family_of

            text, given = _SENTENCE, with_model(given)
            given.setdefault("language", family_of(model_config(given).family).language_of_english)
        check_text(text)
        speak_to(Destination.of(file, None), text, voice, given, quiet)
    if output is None:
        sound(file)


def _preview(voice: str) -> Path | None:
    """The preview of a saved voice, found to be whole."""
    from chatterbox_vllm.voices.library import VoiceLibrary

    library = VoiceLibrary()
    if Path(voice).is_file():
        return None
    found = library.look_for(voice) or library.look_for(library.alias(voice) or "")
    if found is not None and found.preview is not None:
        library.contents.read(found.preview)
        return found.preview
    return None


@from_settings(MODEL)
def show(
    *,
    voice: Annotated[str, typer.Argument(metavar="NAME|FILE", help="a voice's name, or a saved voice's file")],
    json: JsonOption = None,
    given: Keywords,
) -> None:
    """Show what a voice holds, and whether a model can use it."""
    if json is not None:
        check_writable(json)
    from chatterbox_vllm.cli import tables
    from chatterbox_vllm.families.registry import DEFAULT_FAMILY
    from chatterbox_vllm.voices.library import VoiceLibrary
    from chatterbox_vllm.voices.voice import Voice

    library, own = VoiceLibrary(), {}
    if library.look_up(voice) is None:
        given = with_model(given)
        own = _model_voices(given)[1]
        library.find(voice, own)
    # Without a model's name, the published sizes are enough and nothing is downloaded.
    config = model_config(given) if "model" in given else DEFAULT_FAMILY.config
    path = library.find(voice, own, config.voice_kind)
    kept = None if Path(voice).is_file() else library.look_for(voice, config.voice_kind)
    # Of a voice for other models, those that it was not made for enrol the clip that was kept of it.
    by_clip = kept is not None and kept.source(config.voice_kind) == kept.preview
    found = Voice.unchecked(path) if by_clip else Voice.load(path, config)
    model = given.get("model", DEFAULT_FAMILY.name)
    facts: dict[str, Any] = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "T3's speech prompt, tokens": len(found.conditioning.speech_prompt),
        "flow's prompt, tokens": len(found.prompt.tokens),
        "flow's prompt, mel frames": len(found.prompt.mel),
        "fits": f"{model}, which enrols its preview" if by_clip else model,
        "key": found.key,
    }
    if kept is not None:
        facts |= {"languages": ", ".join(kept.languages), "preview": str(kept.preview or ""), "id": kept.id}
    if json is not None:
        write_json(json, facts)
    if json != STANDARD_OUTPUT:
        tables.show(tables.of_rows([facts]))


@from_settings()
def remove(*, name: NameArgument, quiet: bool) -> None:
    """Remove a voice that is saved by name, for all kinds of models, with its preview."""
    from chatterbox_vllm.voices.library import VoiceLibrary

    VoiceLibrary().delete(name)
    if not quiet:
        print(f"{name}: removed")


@from_settings()
def sweep(*, quiet: bool) -> None:
    """Look through all saved voices, and remove files that none of them needs, as a killed process leaves them."""
    from chatterbox_vllm.voices.library import VoiceLibrary

    swept = VoiceLibrary().sweep()
    if not quiet:
        print(f"removed {len(swept.removed)} files that no voice needs")
    if swept.faults:
        raise CheckpointError("; ".join(swept.faults))


@from_settings(MODEL)
def alias(
    *,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="the name that is to stand for a voice")],
    voice: Annotated[str | None, typer.Argument(metavar="VOICE", help="a voice's name", show_default=False)] = None,
    remove: Annotated[bool, typer.Option("--remove", help="take the alias back")] = False,
    given: Keywords,
    quiet: bool,
) -> None:
    """Let a name stand for a voice, as OpenAI's names do where a server speaks with voices of your own."""
    from chatterbox_vllm.voices.library import VoiceLibrary

    if (voice is None) is not remove:
        raise ConfigError("give a VOICE for the alias, or --remove to take it back")
    library = VoiceLibrary()
    if voice is not None and library.look_for(voice) is None and voice not in _model_voices(given)[1]:
        library.find(voice)  # tells which names there are
    library.set_alias(name, voice)
    if not quiet:
        print(f"{name}: is {voice} now" if voice is not None else f"{name}: is no alias any more")
