"""Waveforms to audio files that are either whole or not there."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.errors import OutputError

# Suffix to libsndfile's container and coding.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
# libsndfile's Vorbis encoder takes its input on the stack and overflows on long waves.
ENCODE_BLOCK = 1 << 16


def check_output(path: str | os.PathLike[str]) -> Path:
    """The file that `write_audio(path, …)` would write, links followed; costs nothing, so ask before the long work.

    Raises:
        OutputError: unknown suffix, missing or unwritable directory, or a directory or device in the file's place.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    if given.suffix.lower() not in FORMATS:
        raise OutputError(f"{given}: unknown audio suffix {given.suffix!r}; use one of {', '.join(FORMATS)}")
    container, coding = FORMATS[given.suffix.lower()]
    if not soundfile.check_format(container, coding):
        raise OutputError(f"{given}: this libsndfile cannot write {container}/{coding}; use .wav or .flac")
    if path.exists() and not path.is_file():
        raise OutputError(f"{given}: exists and is not a regular file; name another file")
    if not path.parent.is_dir():
        raise OutputError(f"{given}: there is no directory {path.parent}; make it first (mkdir -p)")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{given}: no permission to write in {path.parent}; choose another directory")
    return path


def encode_audio(wave: Any, rate: int, suffix: str) -> bytes:
    """A waveform as the bytes of an audio file.

    Args:
        wave: floats (samples,) or (1, samples), full scale 1; what lies beyond is clipped.
        rate: in Hz.
        suffix: a key of `FORMATS`: ".wav" and ".flac" are 16-bit PCM, ".ogg" Vorbis, ".opus" Opus, ".mp3" MP3.

    Raises:
        OutputError: unknown suffix, a wave of another shape or with values that are not finite, or a rate that the
            format does not have.
    """
    if suffix.lower() not in FORMATS:
        raise OutputError(f"unknown audio suffix {suffix!r}; use one of {', '.join(FORMATS)}")
    container, coding = FORMATS[suffix.lower()]
    samples = np.asarray(wave, dtype=np.float32)
    if samples.ndim == 2 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim != 1:
        raise OutputError(f"cannot write a wave of shape {samples.shape}; give (samples,) or (1, samples)")
    if not np.isfinite(samples).all():
        raise OutputError("the wave holds values that are not finite numbers; nothing was written")
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", rate, 1, subtype=coding, format=container) as file:
            for start in range(0, len(samples), ENCODE_BLOCK):
                file.write(samples[start : start + ENCODE_BLOCK])
    except (soundfile.SoundFileError, ValueError) as error:
        raise OutputError(f"cannot encode {rate} Hz as {container}/{coding} ({error}); use .wav") from error
    return buffer.getvalue()


def write_audio(path: str | os.PathLike[str], wave: Any, rate: int) -> Path:
    """Write a waveform in the format of the path's suffix, whole or not at all.

    The bytes go to a `.partial` file in the same directory, are synced to the disk and then take the name; an earlier
    file of that name stays until that moment, and stays if anything fails.

    Args:
        path: its suffix is a key of `FORMATS`; links are followed.
        wave: floats (samples,) or (1, samples), full scale 1.
        rate: in Hz.

    Returns:
        The file written.

    Raises:
        OutputError: what `check_output` and `encode_audio` refuse, a full disk, any other failure of the system.
    """
    target = check_output(path)
    data = encode_audio(wave, rate, Path(path).suffix)
    try:
        with whole_file(target) as file:
            file.write(data)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}) after {len(data)} bytes were encoded; "
            "make room or choose another place. Nothing was left behind"
        ) from error
    return target
