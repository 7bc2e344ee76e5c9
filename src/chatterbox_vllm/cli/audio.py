"""Where a command's audio goes: a file, standard output, or a player."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from typing_extensions import Self

from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, claim_standard_output
from chatterbox_vllm.cli.players import playing, stream_player
from chatterbox_vllm.errors import ConfigError

# Those of audio/encode.py, which takes a while to import; and bare samples, for standard output alone.
AudioFormat = Literal["wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "pcm"]
_STREAMED = (".wav", ".pcm")


@dataclass
class Destination:
    """A file in the format of its suffix, whole or not at all; standard output, to itself alone; or a player.

    Use it as a context manager.

    Attributes:
        path: of the file; a player's name.
        stream: standard output, or the player's input from `__enter__` on.
        player: its command.
    """

    path: Path
    suffix: str
    stream: IO[bytes] | None = None
    player: tuple[str, ...] = ()
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def of(cls, path: Path, audio_format: AudioFormat | None) -> Self:
        """The destination that --output and --audio-format name.

        Raises:
            ConfigError: they contradict each other.
            OutputError: nothing can be written there, or not in that format.
        """
        from chatterbox_vllm.audio.encode import check_output, check_suffix

        if path == STANDARD_OUTPUT:
            suffix = f".{audio_format or 'wav'}"
            return cls(path, suffix if suffix in _STREAMED else check_suffix(suffix), claim_standard_output())
        if audio_format == "pcm":
            raise ConfigError(
                "--audio-format pcm is bare samples, for standard output (--output -); name a file's format"
            )
        if audio_format is not None and path.suffix.lower() != f".{audio_format}":
            raise ConfigError(f"--audio-format {audio_format} and --output {path} name two formats: leave out the one")
        check_output(path)
        return cls(path, path.suffix)

    @classmethod
    def loudspeaker(cls) -> Self:
        """A player of this machine, which begins with the first samples.

        Raises:
            OutputError: there is none.
        """
        player = stream_player()
        return cls(Path(player[0]), ".wav", player=player)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.stream is not None and not self.player:
            self.stream.close()
        self._open.__exit__(*error)

    @property
    def takes_parts(self) -> bool:
        """Whether `write_part` serves it, so that whoever listens hears the first samples at once."""
        return (self.stream is not None or bool(self.player)) and self.suffix in _STREAMED

    def write_part(self, wave: Any, rate: int, first: bool) -> None:
        """Send the next part of the audio, 16-bit samples: floats (samples,) at `rate` Hz.

        Raises:
            OutputError: it cannot be sent.
        """
        from chatterbox_vllm.audio.encode import send_bytes
        from chatterbox_vllm.audio.raw import pcm_samples, wav_header

        if self.stream is None:
            self.stream = self._open.enter_context(playing(self.player))
        head = wav_header(rate) if first and self.suffix == ".wav" else b""
        send_bytes(self.stream, head + pcm_samples(wave))

    def write(self, wave: Any, rate: int) -> None:
        """Write all of the audio: floats (samples,) at `rate` Hz.

        Raises:
            OutputError: it cannot be written.
        """
        from chatterbox_vllm.audio.encode import send_audio, write_audio

        if self.stream is None:
            write_audio(self.path, wave, rate)
        else:
            send_audio(self.stream, wave, rate, self.suffix)
