"""Reference clips of any container, codec, rate and channel count to mono float32, by FFmpeg's libraries (PyAV).

Files are not trusted: whatever a file says of itself, decoding takes about the memory of `max_seconds` of sound.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from chatterbox_vllm.audio.guard import GuardedFile
from chatterbox_vllm.audio.mix import Mix
from chatterbox_vllm.errors import AudioError

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | bytes | BinaryIO
REMEDY = "give a speech recording such as WAV, FLAC, MP3, M4A or Ogg"
# Sampling rates that are taken, in Hz. Recorders know none beyond the higher one; below the lower one nobody can be
# understood.
LOWEST_RATE = 4_000
HIGHEST_RATE = 384_000
# Microphone arrays have up to 64 channels.
MOST_CHANNELS = 64
# Frames for a second of sound; each takes its time. The shortest in use, of Opus, last 2.5 ms.
_MOST_FRAMES = 2_000
_FRAMES_UNASKED = 5_000


def decode_audio(
    source: Source, max_seconds: float | None = None, too_long: str = "cut it to a few seconds of clear speech"
) -> tuple[np.ndarray, int]:
    """Decode the best audio stream of a file.

    Integer samples are divided by their full scale (2**15 for 16 bits), float samples are taken as they are, and
    channels are averaged, as `librosa.load(sr=None)` does. The rate stays the file's own up to 96 kHz and becomes
    48 kHz beyond. Where channels cancel each other, the loudest is taken, with a warning. A last packet that was cut
    off is dropped; damage in the middle is an error.

    Args:
        source: an audio or video file: its path, its bytes, or a binary file object that can seek.
        max_seconds: decoding stops, with an error, as soon as the clip turns out to be longer.
        too_long: what that error says to do.

    Returns:
        The wave, float32 (samples,), and its rate in Hz.

    Raises:
        AudioError: no such file, not audio, damaged, without samples, longer than `max_seconds`, or of a sampling rate
            or number of channels that no recording has.
    """
    with _opened(source) as (file, name):
        try:
            file.seek(0)
            first = file.read(1)
            if not isinstance(first, bytes):
                raise AudioError(f"{name}: the file was opened as text; open it in binary mode")
            if not first:
                raise AudioError(f"{name}: the file is empty; {REMEDY}")
            mix = _decoded(file, name, max_seconds, too_long, channel=None)
            if mix.cancels:
                logger.warning("%s: its channels cancel each other; channel %d is taken", name, mix.loudest + 1)
                mix = _decoded(file, name, max_seconds, too_long, channel=mix.loudest)
        except (av.FFmpegError, OSError) as error:
            raise AudioError(f"{name}: cannot be decoded as audio ({_reason(error)}); {REMEDY}") from error
    wave = mix.wave()
    if not len(wave):
        raise AudioError(f"{name}: holds no audio samples; {REMEDY}")
    if not np.isfinite(wave).all():
        raise AudioError(f"{name}: holds samples that are not finite numbers; {REMEDY}")
    return wave, mix.rate


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[BinaryIO, str]]:
    """A file to read, and what to call it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), "the audio"
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        try:
            if not path.exists():
                raise AudioError(f"{path}: no such file; {REMEDY}")
            if not path.is_file():
                raise AudioError(f"{path}: is not a file; {REMEDY}")
            file = path.open("rb")
        except OSError as error:
            raise AudioError(f"{path}: cannot be read ({_reason(error)}); {REMEDY}") from error
        with file:
            yield file, str(path)
    elif hasattr(source, "read") and hasattr(source, "seekable") and source.seekable():
        yield source, "the audio"
    else:
        raise AudioError(f"a clip is a path, bytes or a binary file that can seek, not a {type(source).__name__}")


def _decoded(file: BinaryIO, name: str, max_seconds: float | None, too_long: str, channel: int | None) -> Mix:
    """Decode until the end or the limit; `channel` alone, or the average of all."""
    file.seek(0)
    with av.open(GuardedFile(file), **_options()) as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise AudioError(f"{name}: has no audio stream; {REMEDY}")
        mix: Mix | None = None
        for count, frame in enumerate(_frames(container, stream, name)):
            if mix is None:
                mix = Mix(_checked_rate(frame, name), frame.layout.nb_channels, channel)
            if (frame.sample_rate, frame.layout.nb_channels) != (mix.source_rate, mix.channels):
                raise AudioError(
                    f"{name}: changes on the way from {mix.channels} channels at {mix.source_rate} Hz to "
                    f"{frame.layout.nb_channels} at {frame.sample_rate} Hz; convert it to one form first"
                )
            mix.add(_samples(frame))
            if count > _FRAMES_UNASKED and count > _MOST_FRAMES * mix.seconds:
                raise AudioError(f"{name}: is cut into pieces of less than {1000 / _MOST_FRAMES:g} ms; {REMEDY}")
            if max_seconds is not None and mix.seconds > max_seconds:
                raise AudioError(
                    f"{name}: is {_length(container, mix.seconds)} long, over the limit of {max_seconds:g} s; "
                    f"{too_long}"
                )
    if mix is None:
        raise AudioError(f"{name}: holds no audio samples; {REMEDY}")
    return mix


@lru_cache(maxsize=1)
def _options() -> dict[str, Any]:
    """For `av.open`."""
    # Pictures are decoded while a file is opened, and a small one can take a gigabyte.
    names = sorted(name for name in av.codecs_available if _decodes_audio(name))
    # Playlists and concat scripts name other files and addresses; a clip must not make us open those.
    options: dict[str, Any] = {"protocol_whitelist": "data", "codec_whitelist": ",".join(names)}
    if int(av.__version__.partition(".")[0]) < 19:
        # Tags are read at once, and those that are not UTF-8 would be an error; later versions do not mind them.
        return {"mode": "r", "options": options, "metadata_errors": "replace"}
    return {"mode": "r", "options": options}


def _decodes_audio(name: str) -> bool:
    try:
        return av.Codec(name, "r").type == "audio"
    except ValueError:  # encoders only
        return False


def _checked_rate(frame: Any, name: str) -> int:
    rate, channels = frame.sample_rate, frame.layout.nb_channels
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(
            f"{name}: has a sampling rate of {rate} Hz, {LOWEST_RATE} to {HIGHEST_RATE} are taken; {REMEDY}"
        )
    if channels > MOST_CHANNELS:
        raise AudioError(f"{name}: has {channels} channels, at most {MOST_CHANNELS} are taken; {REMEDY}")
    return int(rate)


def _frames(container: Any, stream: Any, name: str) -> Iterator[Any]:
    """Decoded frames; a packet that fails is forgiven only where no sound surrounds it."""
    decoded, damage = 0, None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damage = error if decoded else None
            continue
        for frame in frames:
            if damage is not None:
                raise AudioError(
                    f"{name}: is damaged after {decoded / frame.sample_rate:.1f} s ({_reason(damage)}); "
                    "export or download it again"
                ) from damage
            decoded += frame.samples
            yield frame


def _samples(frame: Any) -> np.ndarray:
    """One frame as float32 (channels, samples): full scale of its integer format is 1."""
    samples: np.ndarray = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return samples.astype(np.float32)


def _length(container: Any, decoded_seconds: float) -> str:
    """The clip's length in words: what the container declares, or what is certain from decoding."""
    declared = (container.duration or 0) / av.time_base
    return f"{declared:.1f} s" if declared > decoded_seconds else f"more than {decoded_seconds:.1f} s"


def _reason(error: BaseException) -> str:
    """The library's or the system's own words, without number and file name."""
    return getattr(error, "strerror", None) or str(error)
