"""Audio of speech formats, encoded while it comes: what has been sent so far can be played.

`encode.py` writes whole files. Here nothing is known of the length, and nothing that was sent can be changed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from chatterbox_vllm.audio.encode import encode_audio
from chatterbox_vllm.errors import OutputError

# Of a WAV file whose length is not known, as FFmpeg and OpenAI's service write it.
_UNKNOWN_LENGTH = 0xFFFFFFFF
_WAV_HEADER = 44


@dataclass(frozen=True)
class StreamFormat:
    """One format that speech is sent in.

    Attributes:
        media_type: for Content-Type.
        suffix: of a file of it.
        container, codec, sample_format, bit_rate, options: FFmpeg's; empty for what needs no encoder.
    """

    media_type: str
    suffix: str
    container: str = ""
    codec: str = ""
    sample_format: str = "s16"
    bit_rate: int | None = None
    options: tuple[tuple[str, str], ...] = ()


# The six of OpenAI's speech endpoint. The bit rates are transparent for one voice.
STREAM_FORMATS = {
    # Without the frame that tells the length, which could only be written at the end.
    "mp3": StreamFormat(
        "audio/mpeg", ".mp3", "mp3", "libmp3lame", "fltp", 96_000, (("write_xing", "0"), ("id3v2_version", "0"))
    ),
    # Pages of 20 ms, so that none waits to be filled; FFmpeg's own are of a second.
    "opus": StreamFormat("audio/ogg", ".opus", "ogg", "libopus", "s16", 48_000, (("page_duration", "20000"),)),
    "aac": StreamFormat("audio/aac", ".aac", "adts", "aac", "fltp", 96_000),
    "flac": StreamFormat("audio/flac", ".flac", "flac", "flac"),
    "wav": StreamFormat("audio/wav", ".wav"),
    "pcm": StreamFormat("audio/pcm", ".pcm"),
}


class StreamEncoder(Protocol):
    """Takes a wave part by part."""

    def feed(self, wave: np.ndarray) -> bytes:
        """The bytes that are ready after this part, float32 [samples] of full scale 1; there may be none yet."""

    def finish(self) -> bytes:
        """The last bytes. Call it once."""


def stream_encoder(name: str, rate: int) -> StreamEncoder:
    """An encoder of a format of `STREAM_FORMATS` for mono audio of `rate` Hz.

    Raises:
        OutputError: there is no such format, or this FFmpeg has no encoder for it.
    """
    form = _format(name)
    if not form.codec:
        return _Samples(wav_header(rate, None) if name == "wav" else b"")
    return _Encoder(form, rate)


def encode_whole(name: str, wave: np.ndarray, rate: int) -> bytes:
    """A whole wave, float32 [samples], in a format of `STREAM_FORMATS`, with its true length where one is written.

    Raises:
        OutputError: there is no such format, or it cannot be encoded.
    """
    form = _format(name)
    if name == "pcm":
        return pcm16(wave)
    return encode_audio(wave, rate, form.suffix)


def pcm16(wave: np.ndarray) -> bytes:
    """Samples as 16-bit little-endian integers; what lies beyond full scale is clipped."""
    return np.rint(wave.clip(-1, 1) * 32767).astype("<i2").tobytes()


def wav_header(rate: int, samples: int | None) -> bytes:
    """The header of a mono 16-bit WAV file.

    Args:
        samples: how many follow; None where nobody knows yet, which is written as the largest length there is.
    """
    data = _UNKNOWN_LENGTH if samples is None else 2 * samples
    riff = _UNKNOWN_LENGTH if samples is None else data + _WAV_HEADER - 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", data
    )


def _format(name: str) -> StreamFormat:
    if name not in STREAM_FORMATS:
        raise OutputError(f"there is no audio format {name!r}; use one of {', '.join(STREAM_FORMATS)}")
    return STREAM_FORMATS[name]


class _Samples:
    """Plain samples behind a header, which goes out before the first of them."""

    def __init__(self, header: bytes):
        self._header = header

    def feed(self, wave: np.ndarray) -> bytes:
        header, self._header = self._header, b""
        return header + pcm16(wave)

    def finish(self) -> bytes:
        return self._header  # nothing was fed


class _Encoder:
    """An encoder of FFmpeg's, whose container writes into memory that cannot seek."""

    def __init__(self, form: StreamFormat, rate: int):
        import av  # brings all of FFmpeg

        self._rate, self._form = rate, form
        self._sink = _Sink()
        self._samples = 0
        try:
            container: Any = av.open(self._sink, "w", format=form.container, options=dict(form.options))
            container.flags |= av.container.Flags.flush_packets.value
            stream: Any = container.add_stream(form.codec, rate=rate, layout="mono")
        except (av.FFmpegError, ValueError) as error:
            raise OutputError(f"cannot encode {form.container}/{form.codec} ({error}); use wav or pcm") from error
        if form.bit_rate is not None:
            stream.bit_rate = form.bit_rate
        self._file, self._stream = container, stream
        self._frame: Callable[..., Any] = av.AudioFrame.from_ndarray

    def feed(self, wave: np.ndarray) -> bytes:
        if len(wave):
            form = self._form.sample_format
            samples = wave.clip(-1, 1).astype(np.float32)
            if form == "s16":
                samples = np.rint(samples * 32767).astype(np.int16)
            frame = self._frame(np.ascontiguousarray(samples[None]), format=form, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._samples, Fraction(1, self._rate)
            self._samples += len(wave)
            self._file.mux(self._stream.encode(frame))
        return self._sink.taken()

    def finish(self) -> bytes:
        self._file.mux(self._stream.encode(None))
        self._file.close()
        return self._sink.taken()


class _Sink:
    """What FFmpeg writes to. It has no `seek`, so that FFmpeg does not count on one."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def taken(self) -> bytes:
        taken, self._bytes = bytes(self._bytes), bytearray()
        return taken
