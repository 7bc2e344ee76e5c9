"""Figures of merit, each a plain function of two arrays. The first argument is always the baseline's."""

from __future__ import annotations

import re
import unicodedata
import warnings
from typing import Any

import numpy as np
import torch

RATE = 16_000
# What a pair is worth of which the candidate has nothing: the worst value of each scale.
LOWEST_PESQ, LOWEST_STOI = 1.0, 0.0
VOICED = 10.0  # Hz
# The reference implementation of PESQ keeps 50 utterances at most and is meant for 8 to 12 s.
_PESQ_SECONDS = 10
# STOI correlates 30 frames of 256 samples, at steps of 128, at 10 kHz.
_STOI_SECONDS = (30 * 128 + 128) / 10_000
_FFT, _HOP = 1024, 256
_SILENT = 1e-6  # norm of a spectrogram in which there is nothing
# Scripts written without spaces: Thai, Hiragana and Katakana, Han.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"


def divergence(baseline: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of the candidate's next-token distribution from the baseline's at each position.

    Args:
        baseline, candidate: logits [positions, vocabulary] float32.

    Returns:
        float64 [positions] in nats, infinite where the candidate's logits are not finite.

    Raises:
        ValueError: the shapes differ.
    """
    if baseline.shape != candidate.shape:
        raise ValueError(f"logits of shapes {baseline.shape} and {candidate.shape} cannot be compared")
    p, q = (torch.from_numpy(logits).double().log_softmax(-1) for logits in (baseline, candidate))
    # A token that the baseline excludes adds nothing, whatever the candidate says of it.
    terms = torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
    found = terms.sum(-1).numpy()
    return np.where(np.isnan(found), np.inf, np.maximum(found, 0.0))


def same_top1(baseline: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Whether both find the same token likeliest: bool [positions]; false where one of the candidate's logits is NaN or
    infinite.

    Args:
        baseline, candidate: logits [positions, vocabulary].
    """
    sound = (candidate < np.inf).all(-1)  # false for NaN too; minus infinity is an excluded token
    return (baseline.argmax(-1) == candidate.argmax(-1)) & sound


def mel_distance(baseline: np.ndarray, candidate: np.ndarray) -> float:
    """Mean absolute difference of two log-magnitude mels [frames, bins], in nats; infinite if not finite."""
    return _finite(float(np.abs(baseline.astype(np.float64) - candidate).mean()))


def pitch_error(baseline: np.ndarray, candidate: np.ndarray) -> float:
    """Mean absolute difference of two pitches in cents, 1200 where one is voiced and the other not.

    Args:
        baseline, candidate: [frames] in Hz; up to 10 Hz is unvoiced, as for the vocoder.
    """
    voiced, other = baseline > VOICED, candidate > VOICED
    cents = 1200 * np.abs(np.log2(np.maximum(candidate, 1e-3) / np.maximum(baseline, 1e-3)))
    cents = np.where(voiced & other, np.minimum(cents, 1200), np.where(voiced | other, 1200, 0))
    return float(np.where(np.isnan(candidate), 1200, cents).mean())


def spectral_distortion(baseline: np.ndarray, candidate: np.ndarray) -> float | None:
    """How far the candidate's magnitude spectrogram is from the baseline's, in percent of the baseline's norm.

    Spectral convergence (Arik, Jun, Diamos: Fast spectrogram inversion using multi-head convolutional neural networks,
    2018) of a short-time Fourier transform of 1024 samples, Hann window, a step of 256. Phase does not count.

    Args:
        baseline, candidate: waves [samples] of one length and rate.

    Returns:
        infinite where the candidate is not finite, None where the baseline is silent.
    """
    b, c = (_magnitude(wave) for wave in (baseline, candidate))
    norm = b.norm()
    return None if norm < _SILENT else _finite(float(100 * (b - c).norm() / norm))


def pesq(baseline: np.ndarray, candidate: np.ndarray) -> float | None:
    """Perceptual quality of the candidate against the baseline (ITU-T P.862.2, wide band), 1.0 to 4.64.

    The mean over pieces of 10 s.

    Args:
        baseline, candidate: waves [samples] at 16 kHz.

    Returns:
        None where the measure finds no speech in the baseline, or the extra `pesq` is not installed.
    """
    try:
        import pesq as itu
    except ImportError:
        return None

    def score(reference: np.ndarray, degraded: np.ndarray) -> float | None:
        if not reference.any() or not degraded.any():
            return None  # digital silence, which the library does not expect
        try:
            return float(itu.pesq(RATE, reference, degraded, "wb"))
        except (itu.PesqError, ValueError):  # no speech found, or a piece too short
            return None

    scores = []
    for reference, degraded in _pieces(baseline, candidate, _PESQ_SECONDS * RATE):
        # What the measure cannot judge even against itself is no fault of the candidate.
        if score(reference, reference) is not None:
            found = score(reference, degraded)
            scores.append(LOWEST_PESQ if found is None else found)
    return float(np.mean(scores)) if scores else None


def stoi(baseline: np.ndarray, candidate: np.ndarray) -> float | None:
    """Short-time objective intelligibility of the candidate against the baseline (Taal et al., 2011), up to 1.

    Args:
        baseline, candidate: waves [samples] at 16 kHz.

    Returns:
        None where the measure finds less than its 0.4 s of sound in the baseline.
    """
    import pystoi

    # The library does not expect a wave without a frame, nor digital silence.
    if len(baseline) < _STOI_SECONDS * RATE or not baseline.any():
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames")
        try:
            return _worst_if_nan(float(pystoi.stoi(baseline, candidate, RATE)), LOWEST_STOI)
        except RuntimeWarning:
            return None


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of two embeddings of one size; 0 where one is not finite."""
    value = torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
    return _worst_if_nan(float(value), 0.0)


def word_errors(reference: str, transcript: str) -> tuple[int, int]:
    """Word substitutions, insertions and deletions between two texts, and the reference's words.

    Case and punctuation do not count, nor how Unicode composes a letter. Where a script is written without spaces (Han,
    Hiragana, Katakana, Thai), every character is a word.
    """
    import jiwer

    said, heard = _words(reference), _words(transcript)
    if not said:
        return len(heard), 0
    found = jiwer.process_words(" ".join(said), " ".join(heard))
    return found.substitutions + found.insertions + found.deletions, len(said)


# In a text of `_spelled`, whatever is neither a letter, a space nor an apostrophe is a combining mark.
_MARK = r"[^\w\s']"
_PART = rf"[^\W{_UNSPACED}](?:[^\W{_UNSPACED}]|{_MARK})*"
_WORD = re.compile(rf"[{_UNSPACED}]{_MARK}*|{_PART}(?:'{_PART})*")


def _words(text: str) -> list[str]:
    return _WORD.findall(_spelled(text))


def _spelled(text: str) -> str:
    """Letters, digits and their combining marks, composed (NFC) and without case; the rest is spaces or apostrophes."""
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    # Joiners and soft hyphens say how a word is drawn; they do not end it.
    plain = composed.replace("’", "'").translate(dict.fromkeys(map(ord, "\u200c\u200d\xad")))
    return "".join(c if c.isalnum() or c == "'" or unicodedata.category(c)[0] == "M" else " " for c in plain)


def _magnitude(wave: np.ndarray) -> torch.Tensor:
    samples = torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32))
    samples = torch.nn.functional.pad(samples, (0, max(0, _FFT - len(samples))))
    window = torch.hann_window(_FFT)
    return torch.stft(samples, _FFT, _HOP, window=window, center=False, return_complex=True).abs().double()


def _pieces(a: np.ndarray, b: np.ndarray, size: int) -> list[tuple[Any, Any]]:
    """Cuts of nearly one length, none longer than `size`."""
    count = max(1, -(-len(a) // size))
    return list(zip(np.array_split(a, count), np.array_split(b, count), strict=True))


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float("inf")


def _worst_if_nan(value: float, worst: float) -> float:
    return worst if np.isnan(value) else value
