"""What a clip must be to serve as a reference."""

from __future__ import annotations

import numpy as np

from chatterbox_vllm.errors import AudioError

# What a clip must be to serve as a reference.
MIN_REFERENCE_SECONDS = 0.5


MAX_REFERENCE_SECONDS = 600.0


MIN_REFERENCE_PEAK_DB = -60.0


def check_reference(wave: np.ndarray, rate: int) -> np.ndarray:
    """The clip as contiguous float32, if it can serve as a reference.

    Raises:
        AudioError: it cannot; the message says why and what to do.
    """
    if type(rate) is not int or rate <= 0:
        raise AudioError(f"reference audio: the rate must be a positive integer in Hz, not {rate!r}")
    wave = np.asarray(wave)
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        raise AudioError(
            f"reference audio: expected a mono wave of floats in -1..1, shape [samples], not {wave.dtype} "
            f"{list(wave.shape)}; average the channels, or scale integers by their maximum"
        )
    if len(wave) == 0:
        raise AudioError("reference audio: the clip is empty; give one of 5 to 15 seconds of clear speech")
    seconds = len(wave) / rate
    if seconds < MIN_REFERENCE_SECONDS:
        raise AudioError(
            f"reference audio: the clip lasts {seconds:.2f} s, at least {MIN_REFERENCE_SECONDS} s is needed; "
            "5 to 15 seconds of clear speech serve best"
        )
    if seconds > MAX_REFERENCE_SECONDS:
        raise AudioError(
            f"reference audio: the clip lasts {seconds:.0f} s, at most {MAX_REFERENCE_SECONDS:.0f} s is taken; "
            "cut out 5 to 15 seconds of clear speech"
        )
    with np.errstate(over="ignore"):
        wave = np.ascontiguousarray(wave, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise AudioError(
            f"reference audio: the clip ({seconds:.2f} s) holds NaN or infinite samples; export it anew from its source"
        )
    peak = float(np.abs(wave).max())
    if peak < 10 ** (MIN_REFERENCE_PEAK_DB / 20):
        level = f"{20 * np.log10(peak):.0f} dBFS" if peak > 0 else "digital silence"
        raise AudioError(
            f"reference audio: the clip ({seconds:.2f} s) is silent (peak {level}, at least "
            f"{MIN_REFERENCE_PEAK_DB:.0f} dBFS is needed); record it louder"
        )
    return wave
