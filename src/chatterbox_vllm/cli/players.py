"""Sound on this machine, through a player that is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from chatterbox_vllm.errors import OutputError

_PLAYERS = (("aplay", "-q"), ("afplay",), ("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"))


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
