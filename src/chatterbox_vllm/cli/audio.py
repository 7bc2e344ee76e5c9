"""Where a command's audio goes: a file, or standard output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from typing_extensions import Self

from chatterbox_vllm.cli.outputs import STANDARD_OUTPUT, claim_standard_output
from chatterbox_vllm.errors import ConfigError

# Those of audio/encode.py, which takes a while to import.
AudioFormat = Literal["wav", "flac", "ogg", "opus", "mp3", "m4a", "aac"]


@dataclass
class Destination:
    """A file in the format of its suffix, or standard output. Whole or not at all; nothing else goes there.

    Use it as a context manager.
    """

    path: Path
    suffix: str
    stream: BinaryIO | None = None

    @classmethod
    def of(cls, path: Path, audio_format: AudioFormat | None) -> Self:
        """The destination that --output and --audio-format name.

        Raises:
            ConfigError: they contradict each other.
            OutputError: nothing can be written there, or not in that format.
        """
        from chatterbox_vllm.audio.encode import check_output, check_suffix

        if path == STANDARD_OUTPUT:
            return cls(path, check_suffix(f".{audio_format or 'wav'}"), claim_standard_output())
        if audio_format is not None and path.suffix.lower() != f".{audio_format}":
            raise ConfigError(f"--audio-format {audio_format} and --output {path} name two formats: leave out the one")
        check_output(path)
        return cls(path, path.suffix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.close()

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
