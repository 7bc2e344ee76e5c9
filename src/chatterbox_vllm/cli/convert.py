"""`chatterbox-vllm convert`: recordings said in another voice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatterbox_vllm.cli import process
from chatterbox_vllm.cli.arguments import Keywords, from_settings
from chatterbox_vllm.cli.audio import AudioFormat, Destination
from chatterbox_vllm.cli.options import VoiceOption, check_voice, speech_parameters, with_model
from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, beside
from chatterbox_vllm.errors import AudioError, ChatterboxError, ConfigError, OutputError
from chatterbox_vllm.settings import BY_KEYWORD, MODEL

if TYPE_CHECKING:
    from chatterbox_vllm.engine.conversion import ConversionRequest
    from chatterbox_vllm.engine.request import SpeechResult
    from chatterbox_vllm.vc import ChatterboxVC

_STANDARD_INPUT = Path("-")
_HOW = tuple(BY_KEYWORD[name] for name in ("diffusion_steps", "seed"))
_LOADING = ("tier", "s3gen_dtype", "quantize_s3gen", "max_batch_size", "cuda_graphs", "watermark")


@from_settings(MODEL, _HOW, tuple(BY_KEYWORD[name] for name in _LOADING))
def convert(
    *,
    recordings: Annotated[
        list[Path],
        typer.Argument(metavar="RECORDING…", help="audio files of any format and length; - reads standard input"),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|DIR",
            help="audio file, in the format of its suffix, or - for standard output; for several recordings a "
            "directory, where each keeps its name",
            show_default=False,
        ),
    ],
    audio_format: Annotated[
        AudioFormat | None,
        typer.Option(
            help="of the audio; on standard output wav and pcm (16-bit samples at 24 kHz) come while it is converted",
            show_default="by the suffix; wav on standard output and in a directory",
        ),
    ] = None,
    voice: VoiceOption = None,
    given: Keywords,
    quiet: bool,
) -> None:
    """Say recordings in another voice, as they were spoken. Only S3Gen of the model is loaded."""
    parameters = speech_parameters(given)
    outputs = _outputs(recordings, output, audio_format)
    given = with_model(given)
    clip = check_voice(voice, given, converting=True)
    from chatterbox_vllm.engine.conversion import ConversionRequest
    from chatterbox_vllm.vc import ChatterboxVC

    destinations = [Destination.of(path, audio_format) for path in outputs]
    sources = [_source(path) for path in recordings]
    loading = {name: value for name, value in given.items() if name not in {setting.keyword for setting in _HOW}}
    with ChatterboxVC.from_pretrained(**loading) as vc:
        process.started()
        if clip is not None:
            vc.set_target_voice(clip)
        if vc.target is None:
            raise ConfigError(f"{vc.directory} has no built-in voice: give a reference clip with --voice")
        requests = [ConversionRequest(source, vc.target, parameters) for source in sources]
        if destinations[0].takes_parts:
            _tell(destinations[0], _stream(vc, requests[0], destinations[0]), vc.sr, quiet)
        else:
            _convert(vc, requests, destinations, quiet)


def _outputs(recordings: list[Path], output: Path, audio_format: AudioFormat | None) -> list[Path]:
    """The file that each recording goes to.

    Raises:
        ConfigError: they cannot all go there.
        OutputError: the directory cannot be made.
    """
    if len(recordings) == 1 and not output.is_dir():
        return [output]
    if output == STANDARD_OUTPUT or (output.suffix and not output.is_dir()) or output.is_file():
        raise ConfigError(f"{len(recordings)} recordings need a directory: --output {output} is none; name one")
    suffix = f".{audio_format or 'wav'}"
    outputs: dict[Path, Path] = {}
    for recording in recordings:
        path = output / f"{recording.stem if recording != _STANDARD_INPUT else 'standard-input'}{suffix}"
        if path in outputs:
            raise ConfigError(f"{outputs[path]} and {recording} would both become {path}; convert one by itself")
        if recording.exists() and path.exists() and path.samefile(recording):
            raise ConfigError(f"{recording} would be written over; name another directory with --output")
        outputs[path] = recording
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be made ({error.strerror or error}); name another directory") from error
    return list(outputs)


def _source(path: Path) -> Path | bytes:
    """What is to be converted, so far as it can be told to be there.

    Raises:
        AudioError: there is no such file.
    """
    if path == _STANDARD_INPUT:
        return sys.stdin.buffer.read()
    if not path.is_file():
        raise AudioError(f"{path}: no such file; give an audio file")
    return path


def _convert(vc: ChatterboxVC, requests: list[ConversionRequest], destinations: list[Destination], quiet: bool) -> None:
    """Convert all that can be; what fails is told of in the end.

    Raises:
        ChatterboxError: some could not.
    """
    from chatterbox_vllm.engine.progress import with_progress

    failures: list[ChatterboxError] = []
    results = with_progress(vc.run(requests), len(requests), vc.sr, False if quiet else None, "recording")
    for result in results:
        destination = destinations[result.index]
        if result.audio is None:
            failures.append(result.error or ConfigError("nothing was converted"))
            continue
        with destination:
            destination.write(result.audio.numpy(), vc.sr)
        _tell(destination, result, vc.sr, quiet)
    if len(requests) == 1 and failures:
        raise failures[0]
    if failures:
        told = "; ".join(str(error) for error in failures)
        raise AudioError(f"{len(failures)} of {len(requests)} recordings could not be converted: {told}")


def _stream(vc: ChatterboxVC, request: ConversionRequest, destination: Destination) -> SpeechResult:
    """Send the audio as it is rendered."""
    from chatterbox_vllm.engine.request import AudioChunk

    with destination:
        for event in vc.stream(request):
            if not isinstance(event, AudioChunk):
                return event
            destination.write_part(event.audio.numpy(), vc.sr, first=event.start == 0)
    raise ConfigError("nothing was converted")


def _tell(destination: Destination, result: SpeechResult, rate: int, quiet: bool) -> None:
    if not quiet:
        words = f"{destination.path}: {result.samples / rate:.2f} s, seed {result.seed}"
        print(words, file=beside(destination.path))
