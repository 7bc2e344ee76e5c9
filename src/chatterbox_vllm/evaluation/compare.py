"""Two collections of one plan, measured against each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from chatterbox_vllm.audio.features import RATE_24K
from chatterbox_vllm.audio.resample import resample
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import AudioError, CheckpointError, ConfigError, GenerationError
from chatterbox_vllm.evaluation import metrics
from chatterbox_vllm.evaluation.asr import Recogniser
from chatterbox_vllm.evaluation.collection import Collection, RunFacts
from chatterbox_vllm.evaluation.compare_speech import SpeechComparison, compare_speech, speech_measurements
from chatterbox_vllm.evaluation.gates import Measurement
from chatterbox_vllm.evaluation.plan import Case, EvaluationPlan
from chatterbox_vllm.families.layout import check_module_file
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.files import FileVoices
from chatterbox_vllm.voices.voice import Voice

LATE_POSITION = 250  # 10 s of speech
_INFINITE = float("inf")


@dataclass
class CaseFigures:
    """One case's figures; None where the baseline has nothing to compare with, the worst value where only the candidate
    has not.

    Attributes:
        kl: nats at each position.
        top1: agreement at each position.
        speech: both models' own speech; None where the baseline has none.
        word_errors: of the baseline's and of the candidate's own speech; then the text's words.
    """

    case: Case
    kl: np.ndarray = field(default_factory=lambda: np.zeros(0))
    top1: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    mel_distance: float | None = None
    pitch_error: float | None = None
    spectral_distortion: float | None = None
    pesq: float | None = None
    stoi: float | None = None
    speaker_similarity: float | None = None
    xvector_similarity: float | None = None
    speech: SpeechComparison | None = None
    word_errors: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that gates and report need."""

    baseline: RunFacts
    candidate: RunFacts
    cases: tuple[CaseFigures, ...]
    measurements: dict[str, Measurement]


class VoiceJudge:
    """Says how alike two speakers are, with one model's enrolment nets in float32 on the CPU.

    Raises:
        ConfigError: the model's voice encoder is quantized, or its family is unknown.
        CheckpointError: its files are not what its configuration says.
    """

    def __init__(self, directory: Path):
        config = config_of(directory)
        family = family_of(config.family, directory)
        if config.quantized.voice_encoder is not None:
            raise ConfigError(
                f"{directory} cannot judge speakers, as its voice encoder is quantized "
                f"({config.quantized.voice_encoder.method}); name an unquantized model with --judge MODEL"
            )
        weights = Weights(directory / family.s3gen), Weights(directory / family.voice_encoder)
        for part, file in zip(("s3gen", "voice_encoder"), weights, strict=True):
            check_module_file(config, part, file)
        self._enroller = VoiceEnroller(config, *weights)

    def hear(self, wave: np.ndarray) -> Voice | None:
        """The speaker of a wave [samples] at 24 kHz; None where it cannot serve as a clip."""
        try:
            return self._enroller.enrol(wave, RATE_24K)
        except AudioError:
            return None

    def hear_clip(self, path: str) -> Voice:
        """The speaker of a clip or saved voice. Raises AudioError or CheckpointError where it cannot serve."""
        return FileVoices(self._enroller).voice(Path(path))


def compare(
    plan: EvaluationPlan,
    baseline: Collection,
    candidate: Collection,
    judge: VoiceJudge,
    recogniser: Recogniser | None = None,
) -> Comparison:
    """Measure every figure that a gate judges.

    Raises:
        CheckpointError: a collection is not finished, or is not of this plan.
    """
    facts = baseline.facts(), candidate.facts()
    for collection, run in zip((baseline, candidate), facts, strict=True):
        if [case.index for case in run.cases] != [case.index for case in plan.cases]:
            raise CheckpointError(f"{collection.directory} was not collected with this plan; collect it anew")
    asked = _asked_voices(plan, baseline, judge)
    cases = []
    for case in plan.cases:
        figures = CaseFigures(case)
        _compare_thoughts(figures, baseline, candidate)
        _compare_sound(figures, baseline, candidate, judge)
        figures.speech = compare_speech(case, asked[case.voice], baseline, candidate, judge)
        cases.append(figures)
    measurements = {
        **_t3_measurements(cases),
        **_s3gen_measurements(cases),
        **speech_measurements([figures.speech for figures in cases]),
        **_enrolment_measurements(*facts, baseline, candidate),
        **_run_measurements(*facts),
        "word_errors": _compare_words(cases, baseline, candidate, recogniser),
    }
    return Comparison(*facts, tuple(cases), measurements)


def _asked_voices(plan: EvaluationPlan, baseline: Collection, judge: VoiceJudge) -> list[torch.Tensor]:
    """The speaker embedding of each voice that was asked for: as the judge hears the clip, or the built-in voice's."""
    if plan.clips:
        return [judge.hear_clip(clip).conditioning.speaker_embedding for clip in plan.clips]
    return [torch.load(baseline.voice_path(0), weights_only=True)["t3"]["speaker_emb"]]


def _compare_thoughts(figures: CaseFigures, baseline: Collection, candidate: Collection) -> None:
    expected = baseline.load("logits", figures.case.index)
    found = candidate.load("logits", figures.case.index)
    if expected is None:
        return
    if found is None or found.shape != expected.shape:
        figures.kl = np.full(len(expected), np.inf)
        figures.top1 = np.zeros(len(expected), bool)
        return
    figures.kl = metrics.divergence(expected, found)
    figures.top1 = metrics.same_top1(expected, found)


def _compare_sound(figures: CaseFigures, baseline: Collection, candidate: Collection, judge: VoiceJudge) -> None:
    index = figures.case.index
    mel, wave = baseline.load("mel", index), baseline.load("wave", index)
    other_mel, other_wave = candidate.load("mel", index), candidate.load("wave", index)
    pitch, other_pitch = baseline.load("pitch", index), candidate.load("pitch", index)
    if mel is None or wave is None or pitch is None:
        return
    speaker = judge.hear(wave)
    if other_mel is None or other_wave is None or other_pitch is None or len(other_wave) != len(wave):
        figures.mel_distance = figures.pitch_error = figures.spectral_distortion = _INFINITE
        figures.pesq, figures.stoi = metrics.LOWEST_PESQ, metrics.LOWEST_STOI
        other = None
    else:
        figures.mel_distance = metrics.mel_distance(mel, other_mel)
        figures.pitch_error = metrics.pitch_error(pitch, other_pitch)
        figures.spectral_distortion = metrics.spectral_distortion(wave, other_wave)
        pair = [resample(w, RATE_24K, metrics.RATE) for w in (wave, other_wave)]
        figures.pesq, figures.stoi = metrics.pesq(*pair), metrics.stoi(*pair)
        other = judge.hear(other_wave)
    if speaker is not None:
        figures.speaker_similarity, figures.xvector_similarity = _likeness(speaker, other)


def _likeness(a: Voice, b: Voice | None) -> tuple[float, float]:
    """Cosines of the two embeddings; 0 where there is no second voice."""
    if b is None:
        return 0.0, 0.0
    speakers = a.conditioning.speaker_embedding, b.conditioning.speaker_embedding
    return metrics.cosine(*speakers), metrics.cosine(a.prompt.xvector, b.prompt.xvector)


def _compare_words(
    cases: Sequence[CaseFigures], baseline: Collection, candidate: Collection, recogniser: Recogniser | None
) -> Measurement:
    """Let the recogniser hear every case. One that fails is not asked again: it may take its ten minutes each time."""
    if recogniser is None:
        return Measurement(None, "no speech recogniser was named (--asr)")
    try:
        for figures in cases:
            figures.word_errors = _word_errors(figures.case, baseline, candidate, recogniser)
    except GenerationError as error:
        return Measurement(None, " ".join(str(error).split()))
    return _word_measurement([figures.word_errors for figures in cases if figures.word_errors is not None])


def _word_errors(
    case: Case, baseline: Collection, candidate: Collection, recogniser: Recogniser
) -> tuple[int, int, int] | None:
    expected, found = baseline.load("speech", case.index), candidate.load("speech", case.index)
    if expected is None:
        return None
    wrong, words = metrics.word_errors(case.text, _heard(recogniser, expected))
    other, _ = metrics.word_errors(case.text, "" if found is None else _heard(recogniser, found))
    return wrong, other, words


def _heard(recogniser: Recogniser, speech: np.ndarray) -> str:
    return recogniser(resample(speech, RATE_24K, metrics.RATE))


def _t3_measurements(cases: Sequence[CaseFigures]) -> dict[str, Measurement]:
    found = {}
    for suffix, start in (("", 0), ("_late", LATE_POSITION)):
        kl = np.concatenate([figures.kl[start:] for figures in cases])
        top1 = np.concatenate([figures.top1[start:] for figures in cases])
        if len(kl):
            note = f"{len(kl)} positions, worst {kl.max():.4g}"
            found[f"t3_kl{suffix}"] = Measurement(float(kl.mean()), note)
            found[f"t3_top1{suffix}"] = Measurement(float(top1.mean()), f"{len(kl)} positions")
        else:
            note = f"the baseline said nothing beyond position {start}" if start else "the baseline said nothing"
            found[f"t3_kl{suffix}"] = found[f"t3_top1{suffix}"] = Measurement(None, note)
    return found


SOUND: dict[str, tuple[Callable[..., float], str]] = {
    "mel_distance": (max, "the baseline has no audio"),
    "pitch_error": (max, "the baseline has no audio"),
    "spectral_distortion": (max, "the baseline has no audio, or only silence"),
    "pesq": (min, "PESQ finds no speech in the baseline's audio, or the extra `pesq` is not installed"),
    "stoi": (min, "the baseline's audio is too short for STOI, or silent"),
    "speaker_similarity": (min, "the baseline's audio is too short or silent"),
    "xvector_similarity": (min, "the baseline's audio is too short or silent"),
}


def _s3gen_measurements(cases: Sequence[CaseFigures]) -> dict[str, Measurement]:
    found = {}
    for name, (worst, nothing) in SOUND.items():
        values = [value for figures in cases if (value := getattr(figures, name)) is not None]
        found[name] = (
            Measurement(float(np.mean(values)), f"{len(values)} of {len(cases)} cases, worst {worst(values):.4g}")
            if values
            else Measurement(None, nothing)
        )
    return found


def _enrolment_measurements(
    expected: RunFacts, found: RunFacts, baseline: Collection, candidate: Collection
) -> dict[str, Measurement]:
    likeness = []
    for i, (clip, error) in enumerate(expected.enrolments.items()):
        if error is None:
            failed = clip not in found.enrolments or found.enrolments[clip] is not None
            other = None if failed else torch.load(candidate.voice_path(i, "enrolled"), weights_only=True)
            own = torch.load(baseline.voice_path(i, "enrolled"), weights_only=True)
            likeness.append((0.0, 0.0) if other is None else _stored_likeness(own, other))
    if not likeness:
        nothing = Measurement(None, "no clip could be enrolled by the baseline")
        return {"enrolment_speaker": nothing, "enrolment_xvector": nothing}
    note = f"{len(likeness)} clips"
    speaker, xvector = (float(np.mean(values)) for values in zip(*likeness, strict=True))
    return {"enrolment_speaker": Measurement(speaker, note), "enrolment_xvector": Measurement(xvector, note)}


def _stored_likeness(a: dict, b: dict) -> tuple[float, float]:
    return (
        metrics.cosine(a["t3"]["speaker_emb"], b["t3"]["speaker_emb"]),
        metrics.cosine(a["gen"]["embedding"], b["gen"]["embedding"]),
    )


def _run_measurements(expected: RunFacts, found: RunFacts) -> dict[str, Measurement]:
    failed = expected.failure_rate, found.failure_rate
    return {
        "speed": _speed(expected.real_time_factor, found.real_time_factor),
        "device_memory": _device_memory(expected, found),
        "host_memory": Measurement(
            found.peak_host_bytes / expected.peak_host_bytes,
            f"{found.peak_host_bytes / 2**20:.0f} MiB, the baseline {expected.peak_host_bytes / 2**20:.0f}",
        ),
        "failures": Measurement(max(0.0, failed[1] - failed[0]), f"{failed[1]:.1%}, the baseline {failed[0]:.1%}"),
    }


def _device_memory(expected: RunFacts, found: RunFacts) -> Measurement:
    """Of what each process itself held."""
    if not expected.peak_device_bytes or not found.peak_device_bytes:
        return Measurement(None, "no device memory on a CPU")
    if expected.counted_by != found.counted_by:
        return Measurement(None, f"counted by the {found.counted_by}, the baseline's by the {expected.counted_by}")
    mine, other = found.peak_device_bytes, expected.peak_device_bytes
    note = f"{mine / 2**20:.0f} MiB, the baseline {other / 2**20:.0f}, counted by the {found.counted_by}"
    return Measurement(mine / other, note)


def _speed(expected: float | None, found: float | None) -> Measurement:
    """Of two real-time factors."""
    if expected is None or found is None:
        name = "baseline" if expected is None else "candidate"
        return Measurement(None, f"the {name} left cases unspoken in every repeat, and failures take no time")
    note = f"real-time factor {found:.3g}, the baseline's {expected:.3g}"
    return Measurement(expected / found if np.isfinite(expected) else None, note)


def _word_measurement(counts: Sequence[tuple[int, int, int]]) -> Measurement:
    """Of the cases that the baseline spoke."""
    if not counts:
        return Measurement(None, "the baseline said nothing")
    baseline, candidate, words = np.array(counts).sum(0)
    if not words:
        return Measurement(None, "the texts hold no words")
    note = f"{candidate / words:.1%}, the baseline {baseline / words:.1%}"
    return Measurement(float((candidate - baseline) / words), note)
