"""Reference clips of any container, codec, rate and channel count to mono float32, by FFmpeg's libraries (PyAV)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from chatterbox_vllm.errors import AudioError

REMEDY = "give a speech recording such as WAV, FLAC, MP3, M4A or Ogg"
# Playlists and concat scripts name other files and addresses; a clip must not make us open those.
_OPEN: dict[str, Any] = {"mode": "r", "options": {"protocol_whitelist": "data"}}
if int(av.__version__.partition(".")[0]) < 19:
    # Tags are read at once, and those that are not UTF-8 would be an error; later versions do not mind them.
    _OPEN["metadata_errors"] = "replace"


def decode_audio(path: str | os.PathLike[str], max_seconds: float | None = None) -> tuple[np.ndarray, int]:
    """Decode the best audio stream of a file.

    Integer samples are divided by their full scale (2**15 for 16 bits), float samples are taken as they are, and
    channels are averaged, as `librosa.load(sr=None)` does. The rate stays the file's own. A last packet that was cut
    off is dropped; damage in the middle is an error.

    Args:
        path: an audio or video file.
        max_seconds: decoding stops, with an error, as soon as the clip turns out to be longer.

    Returns:
        The wave, float32 (samples,), and its rate in Hz.

    Raises:
        AudioError: no such file, not audio, damaged, without samples, or longer than `max_seconds`.
    """
    path = Path(path)
    if not path.exists():
        raise AudioError(f"{path}: no such file; {REMEDY}")
    if not path.is_file():
        raise AudioError(f"{path}: is not a file; {REMEDY}")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise AudioError(f"{path}: the file is empty; {REMEDY}")
            file.seek(0)
            with av.open(file, **_OPEN) as container:
                wave, rate = _collect(container, path, max_seconds)
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{path}: cannot be decoded as audio ({_reason(error)}); {REMEDY}") from error
    if not len(wave):
        raise AudioError(f"{path}: holds no audio samples; {REMEDY}")
    if not np.isfinite(wave).all():
        raise AudioError(f"{path}: holds samples that are not finite numbers; {REMEDY}")
    return wave, rate


def _collect(container: Any, path: Path, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Decode until the end or the limit."""
    stream = container.streams.best("audio")
    if stream is None:
        raise AudioError(f"{path}: has no audio stream; {REMEDY}")
    chunks: list[np.ndarray] = []
    rate, total = 0, 0
    for frame in _frames(container, stream, path):
        if rate and frame.sample_rate != rate:
            raise AudioError(
                f"{path}: its sampling rate changes from {rate} to {frame.sample_rate} Hz on the way; "
                "convert it to one rate first"
            )
        rate = frame.sample_rate
        chunks.append(_mono(frame))
        total += frame.samples
        if max_seconds is not None and total > max_seconds * rate:
            raise AudioError(
                f"{path}: is {_length(container, total / rate)} long, over the limit of {max_seconds:g} s; "
                "cut it to a few seconds of clear speech"
            )
    return (np.concatenate(chunks) if chunks else np.empty(0, np.float32)), rate


def _frames(container: Any, stream: Any, path: Path) -> Iterator[Any]:
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
                    f"{path}: is damaged after {decoded / frame.sample_rate:.1f} s ({_reason(damage)}); "
                    "export or download it again"
                ) from damage
            decoded += frame.samples
            yield frame


def _mono(frame: Any) -> np.ndarray:
    """One frame as float32 (samples,): full scale of its integer format is 1, channels averaged."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128.0) / 128.0
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    else:
        samples = samples.astype(np.float32)
    return samples[0] if len(samples) == 1 else samples.mean(axis=0)


def _length(container: Any, decoded_seconds: float) -> str:
    """The clip's length in words: what the container declares, or what is certain from decoding."""
    declared = (container.duration or 0) / av.time_base
    return f"{declared:.1f} s" if declared > decoded_seconds else f"more than {decoded_seconds:.1f} s"


def _reason(error: BaseException) -> str:
    """The library's or the system's own words, without number and file name."""
    return getattr(error, "strerror", None) or str(error)
