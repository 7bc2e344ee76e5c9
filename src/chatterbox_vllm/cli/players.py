"""Sound on this machine, through a player that is installed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from chatterbox_vllm.errors import OutputError

_PLAYERS = (("aplay", "-q"), ("afplay",), ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"))
# Those that begin before the sound is whole; "-" is their standard input.
_STREAM_PLAYERS = (
    ("aplay", "-q", "-"),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"),
    ("play", "-q", "-t", "wav", "-"),
)


def play(path: Path) -> None:
    """Play an audio file to its end.

    Raises:
        OutputError: there is no player, or it fails; the file stays.
    """
    player = next((words for words in _PLAYERS if shutil.which(words[0])), None)
    if player is None:
        raise OutputError(
            f"{path} is written, but nothing here can play it: install aplay (alsa-utils) or ffplay (ffmpeg), or open "
            "the file elsewhere; with --output FILE nothing is played"
        )
    done = subprocess.run([*player, str(path)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise OutputError(
            f"{path} is written, but {player[0]} cannot play it ({said[-1]}): open the file elsewhere; with --output "
            "FILE nothing is played"
        )


def stream_player() -> tuple[str, ...]:
    """The command of a player that takes WAV while it is made.

    Raises:
        OutputError: there is none.
    """
    words = next((words for words in _STREAM_PLAYERS if shutil.which(words[0])), None)
    if words is None:
        raise OutputError(
            "nothing here can play what is spoken: install aplay (alsa-utils), ffplay (ffmpeg) or play (sox), or write "
            "a file with --output FILE"
        )
    return words


@contextlib.contextmanager
def playing(words: tuple[str, ...]) -> Iterator[IO[bytes]]:
    """A player's input. At the end it plays out; where an error ends it, the player stops at once.

    Raises:
        OutputError: the player failed.
    """
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as player:
        assert player.stdin is not None and player.stderr is not None
        try:
            yield player.stdin
            player.stdin.close()
        except OutputError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                player.wait(1)  # it went away by itself: what it says is the reason
            if player.poll() is None:
                raise
        finally:
            if player.poll() is None and not player.stdin.closed:
                player.kill()
        said = player.stderr.read().decode(errors="replace").strip().splitlines()
    if player.returncode:
        reason = said[-1] if said else f"exit status {player.returncode}"
        raise OutputError(f"{words[0]} cannot play ({reason}): mend that, or write a file with --output FILE")
