"""The parts of a collection: what a loaded model speaks, thinks and enrols; voicing.py voices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.engine.request import SpeechRequest
from chatterbox_vllm.errors import ChatterboxError
from chatterbox_vllm.evaluation.collection import CaseFacts, Collection
from chatterbox_vllm.evaluation.plan import Case, EvaluationPlan
from chatterbox_vllm.t3.vllm.forcing import ForcedTokens
from chatterbox_vllm.tts import ChatterboxTTS
from chatterbox_vllm.voices.voice import Voice

# Baseline audio that both models enrol where the plan names no clips.
_MOST_CLIPS = 3
_WARM_UP_TOKENS = 25


@dataclass
class _Repeat:
    """All cases spoken once.

    Attributes:
        seconds: that all took.
        audio: [samples] of each case that was spoken, by its index.
    """

    seconds: float
    cases: list[CaseFacts]
    audio: dict[int, np.ndarray]

    @property
    def unspoken(self) -> int:
        return sum(case.error is not None for case in self.cases)


def speak(
    tts: ChatterboxTTS, plan: EvaluationPlan, voices: Sequence[Voice], into: Collection
) -> tuple[list[CaseFacts], float | None]:
    """Speak every case end to end, all submitted at once, `plan.repeats` times, and keep the audio.

    The fastest repeat counts, of those with the fewest cases that were not spoken: failing is no way to be fast. What
    failed in the others is kept with each case.

    Returns:
        what became of each case, in the plan's order, and the seconds that all took; None where no repeat spoke all.
    """
    cases = plan.cases
    requests = [
        SpeechRequest(case.text, voices[case.voice], plan.parameters(case.seed), language=plan.language)
        for case in cases
    ]
    warm_up = [replace(r, parameters=replace(r.parameters, max_tokens=_WARM_UP_TOKENS)) for r in requests[:1]]
    for _ in tts.run(warm_up):
        pass
    repeats = [_speak_once(tts, plan, requests) for _ in range(plan.repeats)]
    best = min(repeats, key=lambda repeat: (repeat.unspoken, repeat.seconds))
    others = [repeat for repeat in repeats if repeat is not best]
    for facts in best.cases:
        facts.other_troubles = [what for other in others if (what := other.cases[facts.index].trouble) is not None]
    for index, audio in best.audio.items():
        into.save("speech", index, audio)
    return best.cases, None if best.unspoken else best.seconds


def _speak_once(tts: ChatterboxTTS, plan: EvaluationPlan, requests: Sequence[SpeechRequest]) -> _Repeat:
    start = time.perf_counter()
    results = list(tts.run(requests))
    repeat = _Repeat(time.perf_counter() - start, [CaseFacts(case.index) for case in plan.cases], {})
    for result in results:
        facts = repeat.cases[result.index]
        facts.finish_reason = result.finish_reason
        facts.speech_tokens = list(result.speech_tokens)
        facts.error = None if result.error is None else str(result.error)
        if result.audio is not None and not bool(result.audio.isfinite().all()):
            facts.error = "the audio is not finite"
        elif result.audio is not None:
            facts.seconds = len(result.audio) / tts.sr
            repeat.audio[result.index] = result.audio.numpy()
    return repeat


def force(
    tts: ChatterboxTTS,
    plan: EvaluationPlan,
    voices: Sequence[Voice],
    said: Sequence[CaseFacts],
    into: Collection,
) -> None:
    """Make T3 say what the baseline said, end of speech included, and keep its guided logits.

    Raises:
        GenerationError: the engine failed.
    """
    cases = [case for case in plan.cases if said[case.index].speech_tokens]
    for start in range(0, len(cases), plan.batch_size):
        group = cases[start : start + plan.batch_size]
        work = [(case, _forced(tts, said[case.index])) for case in group]
        _run_forced(tts, plan, voices, work)
        for case, forced in work:
            into.save("logits", case.index, forced.logits.numpy())


def _forced(tts: ChatterboxTTS, said: CaseFacts) -> ForcedTokens:
    config = tts.t3_stage.config
    end = [config.stop_speech_token] if said.finish_reason == "stop" else []
    return ForcedTokens(said.speech_tokens + end, config.speech_vocab_size)


def _run_forced(
    tts: ChatterboxTTS, plan: EvaluationPlan, voices: Sequence[Voice], work: Sequence[tuple[Case, ForcedTokens]]
) -> None:
    scheduler, talker = tts.lend_scheduler()
    try:
        for case, forced in work:
            parameters = replace(plan.parameters(case.seed), max_tokens=len(forced.tokens))
            prompts = scheduler.preparation.prompts
            language = prompts.family.language_of(case.text, plan.language)
            prompt, values = prompts.prompt_of(case.text, voices[case.voice], parameters, language)
            talker.add(f"forced-{case.index}", prompt, values.sampling, case.seed, forced=forced)
        while talker.unfinished:
            talker.step()
    finally:
        if talker.unfinished:
            talker.abort([f"forced-{case.index}" for case, _ in work])
        tts.return_scheduler()


def write_clips(plan: EvaluationPlan, said: Sequence[CaseFacts], into: Collection) -> None:
    """The baseline's longest utterances as clips that every model will enrol, where the plan names none."""
    if plan.clips:
        return
    longest = sorted(said, key=lambda facts: -facts.seconds)[:_MOST_CLIPS]
    for facts in longest:
        wave = into.load("speech", facts.index)
        if wave is not None:
            write_audio(into.clip_path(facts.index), wave, ChatterboxTTS.sr)


def enrol(tts: ChatterboxTTS, plan: EvaluationPlan, baseline: Collection, into: Collection) -> dict[str, str | None]:
    """Enrol the plan's clips, or the baseline's; keep the voices as "enrolled", in the order of the files.

    Returns:
        for each clip None, or the error that it met.
    """
    clips = [str(clip) for clip in plan.clips] or sorted(str(p) for p in baseline.directory.glob("clip-*.wav"))
    outcome: dict[str, str | None] = {}
    for i, clip in enumerate(clips):
        try:
            tts.enrol(clip).save(into.voice_path(i, "enrolled"))
            outcome[clip] = None
        except ChatterboxError as error:
            outcome[clip] = str(error)
    return outcome
