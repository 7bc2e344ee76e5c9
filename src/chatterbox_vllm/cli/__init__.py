"""The command line. Errors are one line on standard error and exit status 2; Ctrl-C exits with 130.

`evaluate` puts its things away after SIGTERM and SIGHUP, too, and exits with 143 and 129.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from chatterbox_vllm import __version__
from chatterbox_vllm.cli import batch, bench, estimate, evaluate, info, methods, quantize, say
from chatterbox_vllm.cli.interrupts import Ended, endings_raised, keep_interrupts
from chatterbox_vllm.errors import ChatterboxError

FAILED, INTERRUPTED = 2, 130
_SIGNALLED = 128  # statuses above it name a signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(arguments)
    _quiet_libraries()
    try:
        return int(options.command(options))
    except ChatterboxError as error:
        return _fail(str(error))
    except Ended as end:
        with suppress(OSError):  # the terminal may be gone
            print(f"chatterbox-vllm: ended by {end.signal.name}", file=sys.stderr)
        return end.status
    except KeyboardInterrupt:
        print("chatterbox-vllm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def entry() -> NoReturn:
    """The installed command. After an interrupt it ends at once: what has been torn from its work may hang at exit."""
    keep_interrupts()
    with endings_raised():
        status = main()
    if status > _SIGNALLED:
        with suppress(OSError):  # the terminal may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


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
    # But not that the next start will take as long as this one.
    logging.getLogger("chatterbox_vllm.t3.vllm.directory").setLevel(logging.WARNING)
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
    say.add(commands.add_parser("say", help="speak a text into an audio file"))
    batch.add(commands.add_parser("batch", help="speak many texts into a directory; goes on where it was killed"))
    bench.add(commands.add_parser("bench", help="how fast this machine speaks"))
    quantize.add(commands.add_parser("quantize", help="write a model with quantized weights, which loads directly"))
    methods.add(commands.add_parser("methods", help="what each quantization method costs and spares on this machine"))
    evaluate.add(commands.add_parser("evaluate", help="judge a model by another: quality, speed, memory"))
    info.add(commands.add_parser("info", help="versions, device, what would run where, sizes"))
    estimate.add(commands.add_parser("estimate", help="how much memory a model will take, before it is loaded"))
    return parser
