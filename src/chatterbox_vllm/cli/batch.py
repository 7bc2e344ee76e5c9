"""`chatterbox-vllm batch`: a file of texts into a directory of audio files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from chatterbox_vllm.cli.arguments import Keywords, from_settings
from chatterbox_vllm.cli.audio import AudioFormat
from chatterbox_vllm.cli.options import VoiceOption, check_voice, loaded, speech_parameters, with_model
from chatterbox_vllm.cli.say import BABBLES
from chatterbox_vllm.cli.texts import read_pauses
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import ENGINE, MODEL, MODEL_NAME, QUANTIZATION, SPEECH, TEXT, VOICE

if TYPE_CHECKING:
    from chatterbox_vllm.batch.run import Summary
    from chatterbox_vllm.engine.request import SpeechParameters

SOME_FAILED = 1
_INPUT_HELP = (
    ".txt: a text a line. .jsonl: objects; .csv: columns, named in the first line; their keys are text, id (names the "
    "audio file), voice (a clip, relative to INPUT, or a voice's name), norm_loudness (of that clip, true or false), "
    "language, and exaggeration, cfg_weight, temperature, min_p, top_p, top_k, repetition_penalty, max_tokens, "
    "diffusion_steps, seed. - reads standard input"
)


@from_settings(MODEL, SPEECH, VOICE, TEXT, ENGINE, QUANTIZATION)
def batch(
    *,
    input: Annotated[str, typer.Argument(metavar="INPUT", help=_INPUT_HELP, show_default=False)],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-d", metavar="OUTDIR", help="made where missing", show_default=False)
    ],
    format: Annotated[
        Literal["txt", "jsonl", "csv"] | None, typer.Option(help="of INPUT", show_default="by its suffix")
    ] = None,
    audio_format: Annotated[AudioFormat, typer.Option(help="of the audio files")] = "wav",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="start anew, never go on; an earlier run's files are removed")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="try rows again that failed in an earlier run")
    ] = False,
    voice: VoiceOption = None,
    given: Keywords,
    quiet: bool,
) -> int:
    """Speak every row of INPUT into OUTDIR, one audio file a row, with a manifest (manifest.jsonl).

    Killed at any moment and started again with the same command, it goes on where it was. Exit status: 0; 1 if rows
    failed (the manifest and standard error say which and why); 2 if the input or an option cannot be used or OUTDIR
    cannot be written.
    """
    from chatterbox_vllm.audio.encode import check_suffix
    from chatterbox_vllm.batch.folder import Folder
    from chatterbox_vllm.batch.identity import engine_identity, what_files_depend_on
    from chatterbox_vllm.batch.reading import Reading
    from chatterbox_vllm.batch.rows import Input
    from chatterbox_vllm.batch.run import Batch, Summary, tell_faults
    from chatterbox_vllm.batch.voices import RowVoices
    from chatterbox_vllm.engine.request import draw_seed
    from chatterbox_vllm.families.registry import config_of
    from chatterbox_vllm.families.voices import voices_of
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.models import resolve_model

    # Whatever can be refused is refused before the model loads, and before anything is made.
    if overwrite and retry_failed:
        raise ConfigError("--overwrite and --retry-failed contradict each other: leave one of the two out")
    parameters = speech_parameters(given)
    pauses = read_pauses(given.get("pauses", ()))
    reading = Reading(pauses, given.get("clean_text", False), given.get("language"), given.get("prepared_text", False))
    suffix = check_suffix(f".{audio_format}")
    given = with_model(_as_begun(given, output_dir, overwrite))
    clip, norm_loudness = check_voice(voice, given), given.get("norm_loudness")
    with Input(input, format) as source:
        device, rows = resolve_device(given.get("device", "auto")), source.check()
        model = resolve_model(given.get("model"), given.get("revision"))
        named = _named(given, model)
        wanted = what_files_depend_on(
            source.digest, model, clip, parameters, audio_format, device, reading, norm_loudness
        )
        with Folder(output_dir) as folder:
            run = folder.open(wanted, rows, overwrite, retry_failed)
            if run["seed"] is None:
                run["seed"] = draw_seed() >> 32  # short enough to be typed
            parameters = replace(parameters, seed=run["seed"])
            if Folder.OPEN not in folder.done:
                summary = Summary(rows, rows, failed=folder.done.count(Folder.FAILED))
            else:
                voices = RowVoices(source.directory, voices_of(model), config_of(model).voice_kind)
                told = tell_faults(source, folder, voices)
                work = parameters, voices, clip, suffix, told, reading, norm_loudness
                if len(told) == folder.done.count(Folder.OPEN):  # nothing that a model could speak
                    folder.begin(run, None, named)
                    summary = Batch(source, folder, None, *work).run()
                else:
                    with loaded(given) as tts:
                        folder.begin(run, engine_identity(tts.settings), named)
                        summary = Batch(source, folder, tts, *work).run()
    if not quiet:
        print(f"{output_dir}: {_summary(summary, parameters, model)}")
    return SOME_FAILED if summary.failed else 0


def _as_begun(given: Keywords, output_dir: Path, overwrite: bool) -> Keywords:
    """The keywords; where nothing names a model, with that of the run that goes on.

    What the default is depends on the network, so it may be another model than when the run began.
    """
    from chatterbox_vllm.batch.folder import named_model

    if overwrite or given.keys() & {"model", "revision"} or MODEL_NAME.from_environment():
        return given
    return given | named_model(output_dir)


def _named(given: Keywords, model: Path) -> dict[str, str]:
    """What names the model, for `_as_begun` wherever it is asked."""
    named: dict[str, str] = {name: str(given[name]) for name in ("model", "revision") if name in given}
    if Path(named.get("model", "")).absolute() == model.absolute():
        named["model"] = str(model.absolute())
    return named


def _summary(summary: Summary, parameters: SpeechParameters, model: Path) -> str:
    """One line for a person."""
    from chatterbox_vllm.families.registry import config_of

    spoken = f"{summary.rows - summary.failed} of {summary.rows} rows spoken"
    if summary.earlier:
        spoken += f" ({summary.earlier} of {summary.rows} were done before)"
    notes = [spoken]
    if summary.failed:
        notes.append(f"{summary.failed} failed (see manifest.jsonl; --retry-failed tries them again)")
    if summary.cut_off:
        notes.append(f"{summary.cut_off} cut off at --max-tokens")
    if summary.spoken:
        speed = summary.seconds / summary.wall
        notes.append(f"{summary.seconds:.1f} s of audio in {summary.wall:.1f} s, {speed:.1f}x real time")
    notes.append(f"seed {parameters.seed}")
    if config_of(model).synthetic:
        notes.append(BABBLES)
    return ", ".join(notes)
