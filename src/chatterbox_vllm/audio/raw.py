"""Audio without an end in sight: 16-bit samples as they come, and a WAV header that does not know how many."""

from __future__ import annotations

import struct

import numpy as np

_UNKNOWN = 0xFFFFFFFF  # of a size: until the stream ends, as FFmpeg and others read it
_PCM, _MONO, _BYTES = 1, 1, 2


def pcm_samples(wave: np.ndarray) -> bytes:
    """Floats (samples,), full scale 1, as 16-bit little-endian integers; what lies beyond is clipped."""
    return np.rint(np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()


def wav_header(rate: int) -> bytes:
    """The head of a mono 16-bit WAV stream at `rate` Hz, to be followed by `pcm_samples`."""
    form = struct.pack("<HHIIHH", _PCM, _MONO, rate, rate * _BYTES, _BYTES, 8 * _BYTES)
    unknown = struct.pack("<I", _UNKNOWN)
    return b"".join((b"RIFF", unknown, b"WAVEfmt ", struct.pack("<I", len(form)), form, b"data", unknown))
