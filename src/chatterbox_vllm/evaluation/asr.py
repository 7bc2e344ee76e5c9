"""A speech recogniser at hand, for the word error rate: Whisper, a Python function or a command.

"tiny.en" and "base" are Whisper's (see `whisper`).

A function is named `module:function` and is called with a float32 wave [samples] at 16 kHz; it returns the text.
A command is anything else: the path of a 16 kHz mono WAV file takes the place of `{}` in it, or is appended; it prints
the text on standard output and exits with 0.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.evaluation.metrics import RATE
from chatterbox_vllm.evaluation.whisper import SIZES, Whisper, whisper_folder

Recogniser = Callable[[np.ndarray], str]

_FUNCTION = re.compile(r"[\w.]+:\w+")
_MOST_SECONDS = 600


def load_recogniser(name: str) -> Recogniser:
    """The recogniser that `name` stands for.

    Raises:
        ConfigError: there is no such function or program, Whisper is not installed, or the command is empty or cannot
            be parsed.
    """
    if name in SIZES:
        return Whisper(whisper_folder(name)).hear
    if _FUNCTION.fullmatch(name):
        return _function(name)
    try:
        words = shlex.split(name)
    except ValueError as error:
        raise ConfigError(f"the recogniser {name!r} is not a command line: {error}") from error
    if not words:
        raise ConfigError("the recogniser is empty; give module:function or a command")
    if shutil.which(words[0]) is None:
        raise ConfigError(f"the recogniser {words[0]} is not a program that can be run; install it, or give its path")
    return lambda wave: _ask_command(words, wave)


def _function(name: str) -> Recogniser:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything while it is imported, SystemExit too
        raise ConfigError(
            f"the recogniser {name!r} cannot be imported ({type(error).__name__}: {error}); is its directory on "
            "PYTHONPATH?"
        ) from error
    if not callable(found):
        raise ConfigError(f"the recogniser {name!r} is {type(found).__name__}, not a function")

    def ask(wave: np.ndarray) -> str:
        try:
            text = found(wave)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # one that ends with SystemExit must not end the evaluation
            raise GenerationError(f"the recogniser {name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise GenerationError(f"the recogniser {name} returned {type(text).__name__}, not a string")
        return text

    return ask


def _ask_command(words: list[str], wave: np.ndarray) -> str:
    with tempfile.TemporaryDirectory(prefix="chatterbox-asr-") as directory:
        path = str(write_audio(Path(directory) / "speech.wav", wave, RATE))
        command = [word.replace("{}", path) for word in words]
        if command == words:
            command.append(path)
        try:
            return _output(command).strip()
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise GenerationError(f"the recogniser {words[0]} failed with status {error.returncode}: {last}") from error
        except UnicodeDecodeError as error:
            raise GenerationError(f"the recogniser {words[0]} printed what is not UTF-8: {error}") from error
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise GenerationError(f"the recogniser {words[0]} cannot be run: {error}") from error


def _output(command: list[str]) -> str:
    """What a command prints. If it takes too long or is interrupted, whatever it has started ends with it.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: as `subprocess.run` with check=True.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,  # a shell script's own children are in its group
    ) as process:
        try:
            output, errors = process.communicate(timeout=_MOST_SECONDS)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)
    return output
