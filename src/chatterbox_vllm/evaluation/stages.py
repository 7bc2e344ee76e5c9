"""The parts of a collection: what a loaded model speaks, thinks, voices and enrols."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.cuda.precision import ieee_float32
from chatterbox_vllm.engine.request import SpeechRequest
from chatterbox_vllm.errors import ChatterboxError, GenerationError
from chatterbox_vllm.evaluation.collection import CaseFacts, Collection
from chatterbox_vllm.evaluation.plan import Case, EvaluationPlan
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.s3gen.vocoder.hift import HiFT
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
    requests = [SpeechRequest(case.text, voices[case.voice], plan.parameters(case.seed)) for case in cases]
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
            prompt, values = scheduler.preparation.prompts.prompt_of(case.text, voices[case.voice], parameters)
            talker.add(f"forced-{case.index}", prompt, values.sampling, case.seed, forced=forced)
        while talker.unfinished:
            talker.step()
    finally:
        if talker.unfinished:
            talker.abort([f"forced-{case.index}" for case, _ in work])
        tts.return_scheduler()


def voice_tokens(
    tts: ChatterboxTTS,
    plan: EvaluationPlan,
    voices: Sequence[Voice],
    said: Sequence[CaseFacts],
    found: Sequence[CaseFacts],
    baseline: Collection,
    into: Collection,
) -> None:
    """Give S3Gen the baseline's tokens and noise that is the same on every device; keep mel, pitch and wave.

    The wave has the baseline's pitch: the source sums pitch over all samples, so that a difference of a hundredth of a
    Hertz, which nobody hears, makes another wave after some seconds. Pitch is compared by itself. A case that fails has
    its error in `found` and no arrays.
    """
    model = tts.s3gen_stage.model
    for case in plan.cases:
        tokens = torch.tensor(said[case.index].speech_tokens, dtype=torch.int64)
        if not len(tokens):
            continue
        prompt = voices[case.voice].prompt
        # On the CPU: a generator's numbers differ from device to device.
        noise = model.draw_noise(torch.Generator("cpu").manual_seed(case.seed), len(tokens), prompt)
        try:
            (mel,) = model.mel([S3GenRequest(tokens, prompt, noise)], steps=plan.diffusion_steps)
            pitch = _pitch(model, mel)
            expected = baseline.load("pitch", case.index)
            with given_pitch(model.vocoder, pitch if expected is None else torch.from_numpy(expected)):
                (wave,) = model.waveform([mel], [noise])
            if not bool(wave.isfinite().all()):
                raise GenerationError("the waveform is not finite")
        except (ChatterboxError, torch.OutOfMemoryError) as error:
            found[case.index].s3gen_error = str(error)
            continue
        into.save("mel", case.index, mel.float().cpu().numpy())
        into.save("pitch", case.index, pitch.cpu().numpy())
        into.save("wave", case.index, wave.float().cpu().numpy())


@torch.inference_mode()
@ieee_float32()
def _pitch(model: S3Gen, mel: torch.Tensor) -> torch.Tensor:
    """[frames] in Hz of a mel [frames, mels]."""
    return model.vocoder.pitch(mel.T[None], [len(mel)])[0]


@contextmanager
def given_pitch(vocoder: HiFT, pitch: torch.Tensor) -> Iterator[None]:
    """Within, the vocoder sings at `pitch` [frames] in Hz whatever the mel says; one utterance at a time."""

    def replace_output(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], found: torch.Tensor) -> torch.Tensor:
        if found.shape[-1] != len(pitch):
            raise GenerationError(f"pitch of {len(pitch)} frames was given for a mel of {found.shape[-1]}")
        return pitch.to(found).expand_as(found)

    handle = vocoder.f0_predictor.register_forward_hook(replace_output)
    try:
        yield
    finally:
        handle.remove()


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
