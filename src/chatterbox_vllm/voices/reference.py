"""What a clip must be to serve as a reference, and what of it is heard."""

from __future__ import annotations

import logging

import numpy as np

from chatterbox_vllm.audio.decode import HIGHEST_RATE, LOWEST_RATE
from chatterbox_vllm.errors import AudioError
from chatterbox_vllm.voices.sound import find_sound, peak_of, steady_pitch

logger = logging.getLogger(__name__)

MIN_REFERENCE_SECONDS = 0.5
MAX_REFERENCE_SECONDS = 600.0
MIN_REFERENCE_PEAK_DB = -60.0

# Silence before and after the speech that is heard with it, as the published enrolment does. Recordings of single
# sentences begin and end with less (0.6 s at most among our own clips); longer silence would displace the voice from
# the few seconds that the flow and T3 hear.
_OUTER_SILENCE_SECONDS = 1.0
# What stays of longer silence.
_MARGIN_SECONDS = 0.2
# Of the shortest clips.
_SOUNDING_SHARE = 0.6
# Only so much is asked whether it ever changes: more than the flow hears.
_JUDGED_SECONDS = 20
# Decoders of lossy formats overshoot full scale by less than this.
_LARGEST_FLOAT = 2.0
# Full scales of integers that programs write as floats without dividing them.
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)
# Share of samples at the very limit: far fewer are in recordings that are not clipped.
_CLIPPED_SHARE = 0.002
_CLIPPED_PEAK = 0.5
_ADVICE = "5 to 15 seconds of clear speech serve best"


def check_reference(wave: np.ndarray, rate: int, least_seconds: float = 0.0) -> np.ndarray:
    """The part of a clip to enrol, as contiguous float32, if the clip can serve as a reference.

    Silence of more than a second before or after the sound is cut to 0.2 s; all else stays bit for bit. Floats on the
    scale of integers are scaled down, with a warning. A clipped recording gets a warning.

    Args:
        wave: floats [samples] in -1..1.
        rate: in Hz, 4,000 to 384,000.
        least_seconds: what the part to enrol has to be longer than, beside what every clip must have.

    Raises:
        AudioError: it cannot serve; the message says why and what to do.
    """
    wave = in_range(_floats(wave, rate), "reference audio")
    seconds = len(wave) / rate
    peak = peak_of(wave, rate)
    if peak < 10 ** (MIN_REFERENCE_PEAK_DB / 20):
        offset = float(wave.max())
        level = f"peak {20 * np.log10(peak):.0f} dBFS" if peak > 0 else "digital silence"
        if abs(offset) > 2 * peak:
            level = f"no sound but an offset from zero of {offset:.2g}"
        raise _error(
            f"the clip ({seconds:.2f} s) is silent ({level}; a peak of at least {MIN_REFERENCE_PEAK_DB:.0f} dBFS is "
            "needed); record it anew or louder"
        )
    sound = find_sound(wave, rate)
    # A clip of just that length may begin and end with a little silence.
    if sound.seconds < min(MIN_REFERENCE_SECONDS - 0.03, _SOUNDING_SHARE * seconds):
        raise _error(
            f"the clip ({seconds:.2f} s) is silent but for {sound.seconds:.2f} s of sound, at least "
            f"{MIN_REFERENCE_SECONDS} s is needed; {_ADVICE}"
        )
    hertz = steady_pitch(wave[sound.start : min(sound.end, sound.start + _JUDGED_SECONDS * rate)], rate)
    if hertz is not None:
        raise _error(
            f"the clip ({seconds:.2f} s) holds no speech but a sound that never changes, such as noise, a hum or a "
            f"tone (strongest at {hertz:.0f} Hz); {_ADVICE}"
        )
    share = _clipped_share(wave)
    if share > _CLIPPED_SHARE:
        logger.warning(
            "reference audio: the recording is clipped (%.1f %% of its samples are at the limit); a clean one gives a "
            "better voice",
            100 * share,
        )
    start, end = _span(sound.start, sound.end, len(wave), rate)
    if end - start <= least_seconds * rate:
        raise _error(
            f"the clip has {(end - start) / rate:.2f} s to hear, and this model needs more than {least_seconds:g} s; "
            f"{_ADVICE}"
        )
    if end - start < len(wave):
        logger.info("reference audio: heard from %.1f s to %.1f s, the rest is silent", start / rate, end / rate)
    return wave[start:end]


def _error(fault: str) -> AudioError:
    return AudioError(f"reference audio: {fault}")


def _floats(wave: np.ndarray, rate: int) -> np.ndarray:
    """A clip of a length and rate that can be used, its samples finite."""
    if type(rate) is not int or rate <= 0:
        raise _error(f"the rate must be a positive integer in Hz, not {rate!r}")
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise _error(f"the rate is {rate} Hz, {LOWEST_RATE} to {HIGHEST_RATE} Hz are taken; convert it to 24000 Hz")
    wave = np.asarray(wave)
    if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
        raise _error(
            f"expected a mono wave of floats in -1..1, shape [samples], not {wave.dtype} "
            f"{list(wave.shape)}; average the channels, or scale integers by their maximum"
        )
    if len(wave) == 0:
        raise _error("the clip is empty; give one of 5 to 15 seconds of clear speech")
    seconds = len(wave) / rate
    if seconds < MIN_REFERENCE_SECONDS:
        raise _error(f"the clip lasts {seconds:.2f} s, at least {MIN_REFERENCE_SECONDS} s is needed; {_ADVICE}")
    if seconds > MAX_REFERENCE_SECONDS:
        raise _error(
            f"the clip lasts {seconds:.0f} s, at most {MAX_REFERENCE_SECONDS:.0f} s is taken; "
            "cut out 5 to 15 seconds of clear speech"
        )
    with np.errstate(over="ignore"):
        wave = np.ascontiguousarray(wave, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise _error(f"the clip ({seconds:.2f} s) holds NaN or infinite samples; export it anew from its source")
    return wave


def in_range(wave: np.ndarray, name: str) -> np.ndarray:
    """Samples of about -1..1: floats on the scale of integers are divided by it, louder ones by their peak.

    A warning tells it.

    Args:
        wave: finite floats [samples], at least one.
        name: of the clip, for warning and error.

    Raises:
        AudioError: they are beyond every scale of integers.
    """
    largest = max(float(wave.max()), -float(wave.min()))
    if largest <= _LARGEST_FLOAT:
        return wave
    if largest > _FULL_SCALES[-1]:
        raise AudioError(
            f"{name}: holds samples of {largest:.3g}, floats must be in -1..1; export it anew from its source"
        )
    scale = largest
    if largest > 2.0**7:
        scale = next(full for full in _FULL_SCALES if largest <= full)
    logger.warning(
        "%s: holds samples of %.6g, floats must be in -1..1; they were divided by %.6g",
        name,
        largest,
        scale,
    )
    return wave / np.float32(scale)


def _clipped_share(wave: np.ndarray) -> float:
    """The share of samples within a thousandth of the highest and lowest, where a clip is loud."""
    highest, lowest = wave.max(), wave.min()
    if max(highest, -lowest) < _CLIPPED_PEAK:
        return 0.0
    near = np.count_nonzero(wave >= highest - 0.001 * abs(highest))
    near += np.count_nonzero(wave <= lowest + 0.001 * abs(lowest))
    return near / len(wave)


def _span(start: int, end: int, samples: int, rate: int) -> tuple[int, int]:
    """The span to hear, in samples, of a clip that sounds from `start` to `end`."""
    longest, margin = _OUTER_SILENCE_SECONDS * rate, round(_MARGIN_SECONDS * rate)
    first = start - margin if start > longest else 0
    last = end + margin if samples - end > longest else samples
    return first, last
