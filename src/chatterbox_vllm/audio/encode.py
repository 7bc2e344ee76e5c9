"""Waveforms to audio files that are either whole or not there."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile

from chatterbox_vllm.caches.atomic import whole_file
from chatterbox_vllm.errors import OutputError

# Suffix to container and coding, of libsndfile and of FFmpeg.
_SNDFILE = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_FFMPEG = {".m4a": ("ipod", "aac"), ".aac": ("adts", "aac")}
FORMATS = {**_SNDFILE, **_FFMPEG}
# Sampling rates, in Hz, of codings that have not all of them.
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_RATES = {
    ".opus": OPUS_RATES,
    ".mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    ".m4a": _AAC_RATES,
    ".aac": _AAC_RATES,
}
# Transparent for one voice.
_AAC_BITS_A_SECOND = 96_000
# libsndfile's Vorbis encoder takes its input on the stack and overflows on long waves.
ENCODE_BLOCK = 1 << 16


def check_suffix(suffix: str) -> str:
    """A suffix of `FORMATS` in lower case, if it can be written here; costs nothing, so ask before the long work.

    Raises:
        OutputError: it is unknown, or this libsndfile lacks it.
    """
    known = suffix.lower()
    if known not in FORMATS:
        raise OutputError(f"unknown audio suffix {suffix!r}; use one of {', '.join(FORMATS)}")
    if known in _SNDFILE and not soundfile.check_format(*_SNDFILE[known]):
        raise OutputError(f"this libsndfile cannot write {'/'.join(_SNDFILE[known])}; use .wav or .flac")
    return known


def check_output(path: str | os.PathLike[str]) -> Path:
    """The file that `write_audio(path, …)` would write, links followed; costs nothing, so ask before the long work.

    Raises:
        OutputError: unknown suffix, missing or unwritable directory, or a directory or device in the file's place.
    """
    given, path = Path(path), Path(os.path.realpath(path))
    try:
        check_suffix(given.suffix)
    except OutputError as error:
        raise OutputError(f"{given}: {error}") from None
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
        wave: floats (samples,) or (1, samples), at least one, full scale 1; what lies beyond is clipped.
        rate: in Hz.
        suffix: a key of `FORMATS`: ".wav" and ".flac" are 16-bit PCM, ".ogg" Vorbis, ".opus" Opus, ".mp3" MP3, ".m4a"
            AAC in MP4 and ".aac" AAC in ADTS.

    Raises:
        OutputError: unknown suffix, a wave without samples, of another shape or with values that are not finite, or a
            rate that the format does not have.
    """
    suffix = check_suffix(suffix)
    if suffix in _RATES and rate not in _RATES[suffix]:
        raise OutputError(f"{suffix} has no sampling rate of {rate} Hz; it has {', '.join(map(str, _RATES[suffix]))}")
    samples = np.asarray(wave, dtype=np.float32)
    if samples.ndim == 2 and len(samples) == 1:
        samples = samples[0]
    if samples.ndim != 1 or not len(samples):
        raise OutputError(f"cannot write a wave of shape {samples.shape}; give (samples,) or (1, samples)")
    if not np.isfinite(samples).all():
        raise OutputError("the wave holds values that are not finite numbers; nothing was written")
    return _by_ffmpeg(samples, rate, suffix) if suffix in _FFMPEG else _by_sndfile(samples, rate, suffix)


def _by_sndfile(samples: np.ndarray, rate: int, suffix: str) -> bytes:
    container, coding = _SNDFILE[suffix]
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(buffer, "w", rate, 1, subtype=coding, format=container) as file:
            for start in range(0, len(samples), ENCODE_BLOCK):
                file.write(samples[start : start + ENCODE_BLOCK])
    except (soundfile.SoundFileError, ValueError, TypeError, OverflowError) as error:
        raise OutputError(f"cannot encode {rate} Hz as {container}/{coding} ({error}); use .wav") from error
    return buffer.getvalue()


def _by_ffmpeg(samples: np.ndarray, rate: int, suffix: str) -> bytes:
    import av  # brings all of FFmpeg, which the other formats do not need

    container, coding = _FFMPEG[suffix]
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format=container) as file:
            stream: Any = file.add_stream(coding, rate=rate, layout="mono", bit_rate=_AAC_BITS_A_SECOND)
            frame = av.AudioFrame.from_ndarray(samples[None].clip(-1, 1), format="fltp", layout="mono")
            frame.sample_rate = rate
            file.mux(stream.encode(frame))
            file.mux(stream.encode(None))
    except av.FFmpegError as error:
        raise OutputError(f"cannot encode {rate} Hz as {container}/{coding} ({error}); use .wav") from error
    return buffer.getvalue()


def write_audio(path: str | os.PathLike[str], wave: Any, rate: int) -> Path:
    """Write a waveform in the format of the path's suffix, whole or not at all (`caches.atomic.whole_file`).

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


def send_audio(file: IO[bytes], wave: Any, rate: int, suffix: str) -> None:
    """Write a waveform into an open binary file, a pipe or standard output (`sys.stdout.buffer`).

    Args:
        wave, rate, suffix: as for `encode_audio`.

    Raises:
        OutputError: what `encode_audio` refuses, before anything is written; or the file cannot take all of it.
    """
    send_bytes(file, encode_audio(wave, rate, suffix))


def send_bytes(file: IO[bytes], data: bytes) -> None:
    """Write and flush; raises OutputError if the file cannot take all of it."""
    try:
        file.write(data)
        file.flush()
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"the output does not take the audio ({reason}); is its reader gone, or the disk full?"
        ) from error
