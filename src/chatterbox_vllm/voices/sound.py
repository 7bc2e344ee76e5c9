"""What there is to hear in a recording: where sound is, and whether it ever changes.

Waves are float32 [samples].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_FRAME_SECONDS = 0.02
# A frame so far below the loud ones is silence. Voices fall by less within a sentence; the noise of a quiet room lies
# lower still.
_SILENCE_DB = -30.0
# How long the loud frames together are: longer than clicks, shorter than a word.
_LOUD_SECONDS = 0.25
# A click is shorter than this, the sounds of speech are not.
_SHORTEST_SOUND_SECONDS = 0.06
# Pauses between words belong to the speech.
_PAUSE_SECONDS = 0.3

_WINDOW_SECONDS = 0.1
_BAND_HZ = 300
_HIGHEST_HZ = 4000
# Bands so far below the strongest hold what the recorder adds.
_BAND_FLOOR_DB = -40.0
# In windows of 0.1 s and bands of 300 Hz the level of white noise spreads by 4.3 / sqrt(0.1 * 300) = 0.8 dB. In the
# band where it spreads most it reached 1.7 dB (noise of 1.2 s), and 6.6 dB and more in speech, real and made up.
_STEADY_DB = 1.8
_SHORTEST_STEADY_SECONDS = 1.0
_FEWEST_WINDOWS = 10


@dataclass(frozen=True)
class Sound:
    """Where a recording sounds.

    Attributes:
        start: the first sample of sound.
        end: the sample after the last of it.
        seconds: of sound together, pauses between words included.
    """

    start: int
    end: int
    seconds: float


def peak_of(wave: np.ndarray, rate: int) -> float:
    """The largest swing within 20 ms, halved: the peak of a wave without its offset from zero."""
    frames = _frames(wave, rate)
    return float((frames.max(axis=1) - frames.min(axis=1)).max()) / 2


def find_sound(wave: np.ndarray, rate: int) -> Sound:
    """Where a wave of at least 0.5 s sounds.

    A frame of 20 ms sounds where its power lies less than 30 dB below that of the loudest quarter of a second. Offsets
    from zero are no sound, and nothing is that lasts less than 60 ms.
    """
    frames = _frames(wave, rate)
    power = np.concatenate(
        [block.var(axis=1, dtype=np.float64) for block in np.array_split(frames, len(frames) // 500 + 1)]
    )
    loud = np.partition(power, -round(_LOUD_SECONDS / _FRAME_SECONDS))[-round(_LOUD_SECONDS / _FRAME_SECONDS)]
    sounding = power > loud * 10 ** (_SILENCE_DB / 10)
    where = np.flatnonzero(_without_short_runs(sounding, _SHORTEST_SOUND_SECONDS))
    if not len(where):
        return Sound(0, 0, 0.0)
    gaps = np.diff(where) - 1
    pauses = gaps[gaps * _FRAME_SECONDS <= _PAUSE_SECONDS].sum()
    size = frames.shape[1]
    return Sound(int(where[0]) * size, (int(where[-1]) + 1) * size, float(len(where) + pauses) * _FRAME_SECONDS)


def steady_pitch(wave: np.ndarray, rate: int) -> float | None:
    """The strongest frequency, in Hz, of a sound that never changes: noise, a hum or a tone.

    The levels of bands up to 4 kHz are followed in windows of 0.1 s, relative to the whole window's, so that loudness
    alone is no change. None for a sound that changes, as speech does, or is shorter than a second.
    """
    if len(wave) < _SHORTEST_STEADY_SECONDS * rate:
        return None
    size = round(_WINDOW_SECONDS * rate)
    windows = np.lib.stride_tricks.sliding_window_view(wave, size)[:: size // 2]
    windows = windows - windows.mean(axis=1, keepdims=True)
    power = np.abs(np.fft.rfft(windows * np.hanning(size), axis=1)) ** 2
    hertz = np.fft.rfftfreq(size, 1 / rate)
    edges = np.searchsorted(hertz, np.arange(0, min(_HIGHEST_HZ, rate / 2), _BAND_HZ))
    bands = np.add.reduceat(power, edges, axis=1)
    heard = bands.sum(axis=1) > bands.sum(axis=1).max() * 10 ** (_SILENCE_DB / 10)
    # Where a sound begins or ends it has all frequencies for a moment.
    heard[1:-1] &= heard[:-2] & heard[2:]
    if np.count_nonzero(heard) < _FEWEST_WINDOWS:
        return None
    mean = bands[heard].mean(axis=0)
    strong = mean > mean.max() * 10 ** (_BAND_FLOOR_DB / 10)
    strong[0] = False  # holds rumble, which is too slow for these windows
    levels = 10 * np.log10(bands[heard][:, strong] + 1e-20)
    levels -= levels.mean(axis=1, keepdims=True) if strong.any() else 0
    # The 15th and 85th percentile of a normal distribution are 2.07 standard deviations apart; a click lies outside.
    low, high = np.percentile(levels, (15, 85), axis=0)
    if ((high - low) / 2.07).max(initial=0) > _STEADY_DB:
        return None
    return float(hertz[power[heard].mean(axis=0).argmax()])


def _frames(wave: np.ndarray, rate: int) -> np.ndarray:
    """[frames, samples]; what is left at the end belongs to no frame."""
    size = max(1, round(_FRAME_SECONDS * rate))
    return wave[: len(wave) // size * size].reshape(-1, size)


def _without_short_runs(flags: np.ndarray, seconds: float) -> np.ndarray:
    """Flags with each run of True that is shorter turned to False."""
    ends = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    kept = flags.copy()
    for start, end in ends.reshape(-1, 2):
        if (end - start) * _FRAME_SECONDS < seconds - 1e-9:
            kept[start:end] = False
    return kept
