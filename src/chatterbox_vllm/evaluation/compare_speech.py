"""What a candidate itself says, without a recogniser: how long, in whose voice, and whether it is speech at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from chatterbox_vllm.evaluation import metrics
from chatterbox_vllm.evaluation.collection import Collection
from chatterbox_vllm.evaluation.gates import Measurement
from chatterbox_vllm.evaluation.own_speech import SpeechFigures, measure_speech
from chatterbox_vllm.evaluation.plan import Case
from chatterbox_vllm.voices.voice import Voice

NO_AUDIO = "no audio"
# Letters and digits a second: 15 is usual in English, 5 in Chinese. Short texts have pauses around them.
_FASTEST, _SLOWEST, _MARGIN = 40, 3, 1.5
# Recordings of seven speakers (3 to 9 s each) and sounds made of them or of nothing set these. Two halves of a
# recording differ by up to 0.07 in flatness and by a third in movement; white noise 20 dB below adds 0.05 to 0.17 of
# flatness. Noise of any colour moves by 0.23, speech by 1.1 to 1.8. No recording repeats itself by more than 0.74, a
# loop does by 0.98.
_QUIETER = 20.0  # dB
_FLATTER = 0.1
_UNVOICED, _VOICED_ENOUGH = 0.4, 0.2
_STILLER = 0.5
_LOOP, _MORE_LOOP = 0.9, 0.15
_CLIPPED, _MORE_CLIPPED = 0.005, 10


class Ears(Protocol):
    """Who says how alike two speakers are."""

    def hear(self, wave: np.ndarray) -> Voice | None: ...


@dataclass(frozen=True)
class SpeechComparison:
    """One case's own speech of both models.

    Attributes:
        duration: the longer one's length over the shorter one's; infinite without audio of the candidate.
        spectrum: mean difference of the average log magnitudes of both, in nats.
        speaker: cosine of the candidate's speech to the voice that it was asked for, less the baseline's; None where
            the baseline's is too short to tell.
        baseline_fault, candidate_fault: why a speech is none; None where it is one.
    """

    duration: float
    spectrum: float
    speaker: float | None
    baseline_fault: str | None
    candidate_fault: str | None


def compare_speech(
    case: Case, asked: torch.Tensor, baseline: Collection, candidate: Collection, judge: Ears
) -> SpeechComparison | None:
    """None where the baseline has no audio of the case.

    Args:
        asked: speaker embedding of the voice that both models were asked for.
    """
    expected, found = baseline.load("speech", case.index), candidate.load("speech", case.index)
    if expected is None:
        return None
    speaker = judge.hear(expected)
    own = None if speaker is None else metrics.cosine(speaker.conditioning.speaker_embedding, asked)
    ours = measure_speech(expected)
    if found is None or not len(found):
        return SpeechComparison(math.inf, math.inf, None if own is None else -own, _length(case.text, ours), NO_AUDIO)
    theirs = measure_speech(found)
    heard = None if own is None else judge.hear(found)
    likeness = 0.0 if heard is None else metrics.cosine(heard.conditioning.speaker_embedding, asked)
    return SpeechComparison(
        duration=max(ours.seconds, theirs.seconds) / min(ours.seconds, theirs.seconds),
        spectrum=float(np.abs(ours.spectrum - theirs.spectrum).mean()),
        speaker=None if own is None else likeness - own,
        baseline_fault=_length(case.text, ours),
        candidate_fault=_length(case.text, theirs) or fault(ours, theirs),
    )


def _length(text: str, figures: SpeechFigures) -> str | None:
    letters = sum(map(str.isalnum, text))
    if letters / _FASTEST <= figures.seconds <= letters / _SLOWEST + _MARGIN:
        return None
    return f"{figures.seconds:.2f} s cannot be {letters} letters read aloud"


def fault(baseline: SpeechFigures, candidate: SpeechFigures) -> str | None:
    """Why the candidate's sound is no speech, if the baseline's is; None where it may be."""
    if candidate.level < baseline.level - _QUIETER:
        return f"silence ({candidate.level:.0f} dB, the baseline's {baseline.level:.0f} dB)"
    if candidate.flatness > baseline.flatness + _FLATTER:
        return f"noise (spectral flatness {candidate.flatness:.2f}, the baseline's {baseline.flatness:.2f})"
    if candidate.movement < _STILLER * baseline.movement:
        return (
            f"a steady sound, hum or noise (its spectrum moves by {candidate.movement:.2f} nats, the baseline's by "
            f"{baseline.movement:.2f})"
        )
    if candidate.clipped > max(_CLIPPED, _MORE_CLIPPED * baseline.clipped):
        return f"clipped ({candidate.clipped:.1%} of its samples are as large as the largest)"
    if candidate.repetition > max(_LOOP, baseline.repetition + _MORE_LOOP):
        return f"a loop (it repeats itself by {candidate.repetition:.2f}, the baseline by {baseline.repetition:.2f})"
    if baseline.voiced >= _VOICED_ENOUGH and candidate.voiced < _UNVOICED * baseline.voiced:
        return f"without a voice ({candidate.voiced:.0%} of it is voiced, of the baseline's {baseline.voiced:.0%})"
    return None


def speech_measurements(found: Sequence[SpeechComparison | None]) -> dict[str, Measurement]:
    """The gates' figures of all cases."""
    compared = [comparison for comparison in found if comparison is not None]
    if not compared:
        nothing = Measurement(None, "the baseline said nothing")
        return dict.fromkeys(("speech_sanity", "speech_duration", "speech_spectrum", "speech_speaker"), nothing)
    faults = [(c.baseline_fault, c.candidate_fault) for c in compared]
    bad, worse = (sum(fault is not None for fault in side) for side in zip(*faults, strict=True))
    speakers = [c.speaker for c in compared if c.speaker is not None]
    durations, spectra = [c.duration for c in compared], [c.spectrum for c in compared]
    return {
        "speech_sanity": Measurement(
            max(0.0, (worse - bad) / len(compared)), f"{worse} of {len(compared)} cases, the baseline {bad}"
        ),
        "speech_duration": _mean(durations, max(durations)),
        "speech_spectrum": _mean(spectra, max(spectra)),
        "speech_speaker": _mean(speakers, min(speakers))
        if speakers
        else Measurement(None, "the baseline's own speech is too short or silent"),
    }


def _mean(values: Sequence[float], worst: float) -> Measurement:
    return Measurement(float(np.mean(values)), f"{len(values)} cases, worst {worst:.4g}")
