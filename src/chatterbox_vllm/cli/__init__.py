"""The command line. Errors are one line on standard error and exit status 2; Ctrl-C exits with 130."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_vllm import __version__
from chatterbox_vllm.errors import ChatterboxError, ConfigError

if TYPE_CHECKING:
    from chatterbox_vllm.engine.request import SpeechResult

FAILED, INTERRUPTED = 2, 130
_TOKENS_PER_SECOND = 25


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    _quiet_libraries()
    try:
        return int(options.command(options))
    except ChatterboxError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("chatterbox-vllm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _fail(message: str) -> int:
    print("chatterbox-vllm: error: " + " ".join(message.split()), file=sys.stderr)
    return FAILED


def _quiet_libraries() -> None:
    """Keep what PyTorch and others print on their way out of the user's sight; their errors still come through."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # What our own warnings say, the line that ends a command says too.
    logging.getLogger("chatterbox_vllm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others of this command."""

    def error(self, message: str) -> Any:
        self.exit(_fail(f"{message} (see {self.prog} --help)"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="chatterbox-vllm", description="Chatterbox text-to-speech on vLLM.")
    parser.add_argument("--version", action="version", version=f"chatterbox-vllm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_say(commands.add_parser("say", help="speak a text into an audio file"))
    _add_info(commands.add_parser("info", help="versions, device, what would run where, sizes"))
    return parser


def _add_model(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=default,
        help="english (downloaded at first use), demo (needs no download, babbles), a directory, or a hub id",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def _add_say(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_say)
    parser.add_argument("text", nargs="?", metavar="TEXT", help="what to say; - reads standard input")
    parser.add_argument("-f", "--file", type=Path, metavar="FILE", help="read the text from a file (UTF-8)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", required=True, help="audio file: .wav, .flac, .ogg, .opus or .mp3"
    )
    parser.add_argument("--voice", type=Path, metavar="CLIP", help="reference clip to take the voice from")
    _add_model(parser, "english")
    voice = parser.add_argument_group("how to speak (defaults are the published model's)")
    voice.add_argument("--exaggeration", type=float, metavar="X", default=0.5, help="emotion, 0.5 is neutral")
    voice.add_argument(
        "--cfg-weight", type=float, metavar="X", default=0.5, help="guidance towards the text, 0 is none"
    )
    voice.add_argument("--temperature", type=float, metavar="X", default=0.8, help="0 takes the likeliest token")
    voice.add_argument("--min-p", type=float, metavar="X", default=0.05, help="least share of the likeliest token")
    voice.add_argument("--top-p", type=float, metavar="X", default=1.0, help="nucleus of the distribution")
    voice.add_argument("--repetition-penalty", type=float, metavar="X", default=1.2, help="1 is none")
    voice.add_argument("--max-tokens", type=int, metavar="N", default=1000, help="most speech tokens, 25 to a second")
    voice.add_argument("--steps", type=int, metavar="N", default=10, help="diffusion steps from noise to mel")
    voice.add_argument("--seed", type=int, metavar="N", help="same seed, same audio; the seed used is printed")
    engine = parser.add_argument_group("how to run")
    dtypes = ("auto", "float32", "float16", "bfloat16")
    engine.add_argument("--dtype", choices=dtypes, default="auto", help="T3's precision")
    engine.add_argument("--s3gen-dtype", choices=dtypes, default="auto", help="the flow's precision")
    engine.add_argument("--max-model-len", type=int, metavar="N", default=2048, help="longest prompt and speech")
    engine.add_argument("--no-cuda-graphs", action="store_true", help="start faster, speak slower")
    engine.add_argument("--no-watermark", action="store_true", help="leave the PerTh watermark out")


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_info)
    _add_model(parser, None)
    parser.add_argument("--json", action="store_true", help="as JSON")


def _say(options: argparse.Namespace) -> int:
    from chatterbox_vllm.audio.encode import check_output, write_audio

    # Whatever can be refused is refused before the model loads.
    text = _text(options)
    check_output(options.output)
    from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest

    parameters = SpeechParameters(
        exaggeration=options.exaggeration,
        cfg_weight=options.cfg_weight,
        temperature=options.temperature,
        min_p=options.min_p,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        max_tokens=options.max_tokens,
        diffusion_steps=options.steps,
        seed=options.seed,
    )
    if options.voice is not None:
        from chatterbox_vllm.audio.decode import decode_audio
        from chatterbox_vllm.voices import MAX_REFERENCE_SECONDS, check_reference

        check_reference(*decode_audio(options.voice, max_seconds=MAX_REFERENCE_SECONDS))
    from chatterbox_vllm.hub import DEMO
    from chatterbox_vllm.tts import ChatterboxTTS

    with ChatterboxTTS.from_pretrained(
        options.model,
        options.device,
        dtype=options.dtype,
        s3gen_dtype=options.s3gen_dtype,
        max_model_len=options.max_model_len,
        max_batch_size=1,
        cuda_graphs=False if options.no_cuda_graphs else None,
        watermark=not options.no_watermark,
    ) as tts:
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


def _info(options: argparse.Namespace) -> int:
    from chatterbox_vllm.info import collect, render

    facts = collect(options.model, options.device)
    print(json.dumps(facts, indent=1) if options.json else render(facts))
    return 0
