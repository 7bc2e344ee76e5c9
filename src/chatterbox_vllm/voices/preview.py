"""A short clip of a speaker, to tell voices apart by ear.

It is cut from the reference clip and not spoken by a model: it needs none, it is the same whatever model the voice is
enrolled for, and it is what a listener compares the model's speech with.
"""

from __future__ import annotations

import numpy as np

from chatterbox_vllm.audio.features import RATE_24K
from chatterbox_vllm.audio.resample import resample
from chatterbox_vllm.voices.sound import find_sound

# Equal samples make equal files, which they do not in Ogg; and every browser plays it.
SUFFIX = ".flac"
# The most that T3 of any model hears of a clip: a voice can be enrolled anew from it for models of another kind.
_SECONDS = 15
_LEAD_SECONDS = 0.1
_FADE_SECONDS = 0.02


def preview_of(wave: np.ndarray, rate: int) -> bytes:
    """The first seconds of sound in a clip, as FLAC at 24 kHz.

    Args:
        wave: floating-point mono [samples], which `check_reference` has found to be a reference clip.
        rate: in Hz.
    """
    from chatterbox_vllm.audio.encode import encode_audio

    wave = np.asarray(wave, dtype=np.float32)
    start = max(0, find_sound(wave, rate).start - round(_LEAD_SECONDS * rate))
    cut = resample(wave[start : start + _SECONDS * rate], rate, RATE_24K)
    fade = min(len(cut), round(_FADE_SECONDS * RATE_24K))
    shape = np.ones(len(cut), np.float32)
    shape[len(cut) - fade :] = np.linspace(1, 0, fade, dtype=np.float32)
    # A clip may be on the scale of integers, or overshoot.
    return encode_audio(cut * shape / max(1.0, float(np.abs(cut).max())), RATE_24K, SUFFIX)
