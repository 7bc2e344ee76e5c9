"""`chatterbox-vllm batch`: a file of texts into a directory of audio files."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_vllm.cli.options import add_engine, add_model, add_speech, check_clip, load, speech_parameters
from chatterbox_vllm.errors import OutputError

if TYPE_CHECKING:
    from chatterbox_vllm.batch.run import Summary
    from chatterbox_vllm.engine.request import SpeechParameters

SOME_FAILED = 1
_DESCRIPTION = """\
Speak every row of INPUT into OUTDIR, one audio file a row, with a manifest (manifest.jsonl). Killed at any moment and
started again with the same command, it goes on where it was. Exit status: 0; 1 if rows failed (the manifest and
standard error say which and why); 2 if the input or an option cannot be used or OUTDIR cannot be written.
"""
_INPUT_HELP = """\
.txt: a text a line. .jsonl: objects; .csv: columns, named in the first line; their keys are text, id (names the audio
file), voice (a clip, relative to INPUT), and exaggeration, cfg_weight, temperature, min_p, top_p, repetition_penalty,
max_tokens, diffusion_steps, seed. - reads standard input
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=_batch)
    parser.description = _DESCRIPTION
    parser.add_argument("input", metavar="INPUT", help=_INPUT_HELP)
    parser.add_argument("-d", "--output-dir", type=Path, metavar="OUTDIR", required=True, help="made where missing")
    parser.add_argument("--format", choices=("txt", "jsonl", "csv"), help="of INPUT (default: by its suffix)")
    parser.add_argument(
        "--audio-format", choices=("wav", "flac", "ogg", "opus", "mp3"), default="wav", help="of the audio files"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--overwrite", action="store_true", help="start anew, never go on; an earlier run's files are removed"
    )
    again.add_argument("--retry-failed", action="store_true", help="try rows again that failed in an earlier run")
    parser.add_argument("--voice", type=Path, metavar="CLIP", help="reference clip of rows that name none")
    add_model(parser, "english")
    add_speech(parser)
    engine = add_engine(parser)
    engine.add_argument(
        "--max-batch-size",
        type=int,
        metavar="N",
        help="texts at once (default: the tier's, else 16, on a CPU 4)",
    )


def _batch(options: argparse.Namespace) -> int:
    from chatterbox_vllm.batch.folder import Folder
    from chatterbox_vllm.batch.identity import engine_identity, what_files_depend_on
    from chatterbox_vllm.batch.rows import Input
    from chatterbox_vllm.batch.run import Batch, Summary, tell_faults
    from chatterbox_vllm.engine.request import draw_seed
    from chatterbox_vllm.setup.device import resolve_device
    from chatterbox_vllm.setup.models import resolve_model

    # Whatever can be refused is refused before the model loads, and before anything is made.
    parameters = speech_parameters(options)
    _check_audio_format(options.audio_format)
    check_clip(options.voice)
    with Input(options.input, options.format) as source:
        device, rows = resolve_device(options.device), source.check()
        wanted = what_files_depend_on(
            source.digest, resolve_model(options.model), options.voice, parameters, options.audio_format, device
        )
        with Folder(options.output_dir) as folder:
            run = folder.open(wanted, rows, options.overwrite, options.retry_failed)
            if run["seed"] is None:
                run["seed"] = draw_seed() >> 32  # short enough to be typed
            parameters = replace(parameters, seed=run["seed"])
            if Folder.OPEN not in folder.done:
                failed = folder.done.count(Folder.FAILED)
                return _report(options, parameters, Summary(rows, rows, failed=failed))
            told = tell_faults(source, folder)
            work = parameters, options.voice, f".{options.audio_format}", told
            if len(told) == folder.done.count(Folder.OPEN):  # nothing that a model could speak
                folder.begin(run)
                return _report(options, parameters, Batch(source, folder, None, *work).run())
            with load(options, options.max_batch_size) as tts:
                folder.begin(run, engine_identity(tts.settings))
                return _report(options, parameters, Batch(source, folder, tts, *work).run())


def _check_audio_format(name: str) -> None:
    import soundfile

    from chatterbox_vllm.audio.encode import FORMATS

    container, coding = FORMATS[f".{name}"]
    if not soundfile.check_format(container, coding):
        raise OutputError(f"this libsndfile cannot write {container}/{coding}; use --audio-format wav or flac")


def _report(options: argparse.Namespace, parameters: SpeechParameters, summary: Summary) -> int:
    """One line for a person."""
    from chatterbox_vllm.setup.models import DEMO

    spoken = f"{summary.rows - summary.failed} of {summary.rows} rows spoken"
    if summary.earlier:
        spoken += f" ({summary.earlier} of {summary.rows} were done before)"
    notes = [spoken]
    if summary.failed:
        notes.append(f"{summary.failed} failed (see manifest.jsonl; --retry-failed tries them again)")
    if summary.cut_off:
        notes.append(f"{summary.cut_off} cut off at max_tokens")
    if summary.spoken:
        speed = summary.seconds / summary.wall
        notes.append(f"{summary.seconds:.1f} s of audio in {summary.wall:.1f} s, {speed:.1f}x real time")
    notes.append(f"seed {parameters.seed}")
    if options.model == DEMO:
        notes.append("babble: the demo model's weights are synthetic")
    print(f"{options.output_dir}: {', '.join(notes)}")
    return SOME_FAILED if summary.failed else 0
