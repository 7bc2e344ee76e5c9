"""`chatterbox-vllm say`: one text into one audio file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_vllm.cli.options import add_engine, add_model, add_speech, check_clip, load, speech_parameters
from chatterbox_vllm.errors import ConfigError

if TYPE_CHECKING:
    from chatterbox_vllm.engine.request import SpeechResult

_TOKENS_PER_SECOND = 25


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.set_defaults(command=_say)
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to say; - reads standard input")
    parser.add_argument("-f", "--file", type=Path, metavar="FILE", help="read the text from a file (UTF-8)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", required=True, help="audio file: .wav, .flac, .ogg, .opus or .mp3"
    )
    parser.add_argument("--voice", type=Path, metavar="CLIP", help="reference clip to take the voice from")
    add_model(parser, "english")
    add_speech(parser)
    add_engine(parser)


def _say(options: argparse.Namespace) -> int:
    from chatterbox_vllm.audio.encode import check_output, write_audio

    # Whatever can be refused is refused before the model loads.
    text = _text(options)
    check_output(options.output)
    parameters = speech_parameters(options)
    check_clip(options.voice)
    from chatterbox_vllm.engine.request import SpeechRequest
    from chatterbox_vllm.setup.models import DEMO

    with load(options, max_batch_size=1) as tts:
        if options.voice is not None:
            tts.prepare_conditionals(options.voice)
        if tts.conds is None:
            raise ConfigError(f"{tts.directory} has no built-in voice: give a reference clip with --voice")
        result = _speak(tts.run, SpeechRequest(text, tts.conds, parameters))
        if result.audio is None:
            raise result.error or ConfigError("nothing was spoken")
        write_audio(options.output, result.audio.numpy(), tts.sr)
        seconds = len(result.audio) / tts.sr
    notes = [f"{seconds:.2f} s", f"seed {result.seed}"]
    if result.finish_reason == "length":
        notes.append(f"cut off at --max-tokens {options.max_tokens}")
    if options.model == DEMO:
        notes.append("babble: the demo model's weights are synthetic")
    print(f"{options.output}: {', '.join(notes)}")
    return 0


def _text(options: argparse.Namespace) -> str:
    if (options.text is None) == (options.file is None):
        raise ConfigError("give the text either as TEXT or with --file FILE")
    try:
        if options.file is not None:
            text = options.file.read_text(encoding="utf-8")
        elif options.text == "-":
            text = sys.stdin.buffer.read().decode("utf-8")
        else:
            text = options.text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the text in {options.file or 'standard input'} cannot be read as UTF-8: {error}") from error
    if not text.strip():
        raise ConfigError("there is no text to speak; give at least one word")
    return text


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
