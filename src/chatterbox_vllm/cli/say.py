"""`chatterbox-vllm say`: one text into one audio file, or into whoever listens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatterbox_vllm.cli.arguments import Keywords, from_settings
from chatterbox_vllm.cli.audio import AudioFormat, Destination
from chatterbox_vllm.cli.options import FileOption, VoiceOption, check_voice, loaded, speech_parameters, with_model
from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, beside
from chatterbox_vllm.cli.players import play as play_file
from chatterbox_vllm.cli.texts import check_script, given_text, read_pauses
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import ENGINE, MODEL, QUANTIZATION, SPEECH, STREAM, TEXT, VOICE

if TYPE_CHECKING:
    from chatterbox_vllm.engine.request import SpeechRequest, SpeechResult
    from chatterbox_vllm.tts import ChatterboxTTS

_TOKENS_PER_SECOND = 25
BABBLES = "babble: the model's weights are synthetic"
_OFF_TEXT = {
    "runaway": "a part ran away from its text and was cut; try another seed",
    "hasty": "a part is shorter than its text can be said in; try another seed",
}


@from_settings(MODEL, SPEECH, VOICE, TEXT, ENGINE, STREAM, QUANTIZATION)
def say(
    *,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="what to say; - reads standard input")] = None,
    file: FileOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="audio file, in the format of its suffix; - is standard output",
            show_default="required without --play",
        ),
    ] = None,
    play: Annotated[
        bool, typer.Option("--play", help="play it while it is spoken; with --output, write the file and then play it")
    ] = False,
    audio_format: Annotated[
        AudioFormat | None,
        typer.Option(
            help="of the audio; on standard output wav and pcm (16-bit samples at 24 kHz) come while it is spoken",
            show_default="by the suffix; wav on standard output",
        ),
    ] = None,
    voice: VoiceOption = None,
    given: Keywords,
    quiet: bool,
) -> None:
    """Speak a text into an audio file, or aloud."""
    # Whatever can be refused is refused before the model loads.
    words = given_text(text, file)
    if output is None:
        if not play:
            raise ConfigError("nothing says where the speech goes: give --output FILE, or --play to hear it")
        if audio_format is not None:
            raise ConfigError("--audio-format is of a file or of standard output: give --output, too, or leave it out")
        speak_to(Destination.loudspeaker(), words, voice, given, quiet)
        return
    if play and output == STANDARD_OUTPUT:
        raise ConfigError("--output - sends the speech to a program, --play to a player: leave out the one")
    speak_to(Destination.of(output, audio_format), words, voice, given, quiet)
    if play:
        play_file(output)


def speak_to(destination: Destination, words: str, voice: str | None, given: Keywords, quiet: bool) -> None:
    """Check what was given, load the model, speak one text, and say in a line what came of it."""
    parameters = speech_parameters(given)
    pauses, clean_text = read_pauses(given.get("pauses", ())), given.get("clean_text", False)
    norm_loudness = given.get("norm_loudness")
    if norm_loudness is not None and voice is None:
        raise ConfigError("norm_loudness is of a clip: give one with --voice, or leave it out")
    if "stream_prompt_seconds" in given and not destination.takes_parts:
        raise ConfigError(
            "stream_prompt_seconds is of speech that goes out while it is spoken: send it to a program with --output - "
            "or play it with --play alone, or leave it out"
        )
    given = with_model(given)
    clip = check_voice(voice, given)
    language = check_script(words, pauses, clean_text, given)
    from chatterbox_vllm.engine.request import SpeechRequest
    from chatterbox_vllm.families.registry import config_of

    output = destination.path
    with destination, loaded(given, max_batch_size=1) as tts:
        if clip is not None:
            tts.prepare_conditionals(clip, norm_loudness=norm_loudness)
        if tts.conds is None:
            raise ConfigError(f"{tts.directory} has no built-in voice: give a reference clip with --voice")
        request = SpeechRequest(
            words,
            tts.conds,
            parameters,
            pauses=pauses,
            clean_text=clean_text,
            language=language,
            prepared_text=given.get("prepared_text", False),
        )
        if destination.takes_parts:
            result = _stream(tts, request, destination)
        else:
            result = _speak(tts.run, request)
            if result.audio is None:
                raise result.error or ConfigError("nothing was spoken")
            destination.write(result.audio.numpy(), tts.sr)
        seconds = result.samples / tts.sr
    notes = [f"{seconds:.2f} s", f"seed {result.seed}"]
    if result.finish_reason == "length":
        limit = "" if parameters.max_tokens is None else f" {parameters.max_tokens}"
        notes.append(f"cut off at --max-tokens{limit}")
    elif result.finish_reason in _OFF_TEXT:
        notes.append(_OFF_TEXT[result.finish_reason])
    if config_of(tts.directory).synthetic:
        notes.append(BABBLES)
    if not quiet:
        print(f"{output}: {', '.join(notes)}", file=beside(output))


def _stream(tts: ChatterboxTTS, request: SpeechRequest, destination: Destination) -> SpeechResult:
    """Send the audio of a request as it is rendered."""
    from chatterbox_vllm.engine.request import AudioChunk

    for event in tts.stream(request):
        if not isinstance(event, AudioChunk):
            return event
        destination.write_part(event.audio.numpy(), tts.sr, first=event.start == 0)
    raise ConfigError("nothing was spoken")


def _speak(run: Callable[..., Any], request: Any) -> SpeechResult:
    """Run one request under a progress bar, which shows on a terminal only."""
    from tqdm import tqdm

    with tqdm(
        desc="speaking", unit=" s of speech", disable=None, leave=False, bar_format="{desc} {n:.1f}{unit}"
    ) as bar:

        def step(talking: int) -> None:
            if talking:
                bar.update(1 / _TOKENS_PER_SECOND)
            else:
                bar.set_description("voicing", refresh=True)

        return next(iter(run([request], on_step=step)))
