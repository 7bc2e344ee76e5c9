"""The baseline's tokens through a model's S3Gen stage: the one that serves, in the batches that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.to_speak import TokensToSpeak
from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.evaluation.collection import CaseFacts, Collection
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.voices.voice import Voice


def voice_tokens(
    stage: S3GenStage,
    plan: EvaluationPlan,
    voices: Sequence[Voice],
    said: Sequence[CaseFacts],
    found: Sequence[CaseFacts],
    baseline: Collection,
    into: Collection,
) -> None:
    """Give the stage the baseline's tokens and noise that is the same on every device; keep mel, pitch and wave.

    The wave has the baseline's pitch: the source sums pitch over all samples, so that a difference of a hundredth of a
    Hertz, which nobody hears, makes another wave after some seconds. Pitch is compared by itself. A case that fails has
    its error in `found` and no arrays.
    """
    waiting: list[tuple[int, TokensToSpeak]] = []
    pitches: dict[int, torch.Tensor] = {}
    for case in plan.cases:
        tokens, voice = said[case.index].speech_tokens, voices[case.voice]
        if tokens:
            noise = stage.model.draw_noise(case.seed, len(tokens), voice.prompt)
            waiting.append((case.index, TokensToSpeak(tuple(tokens), voice, plan.diffusion_steps, case.seed, noise)))
            pitch = baseline.load("pitch", case.index)
            if pitch is not None:
                pitches[id(noise)] = torch.from_numpy(pitch)
    while waiting:
        chosen = stage.choose([utterance for _, utterance in waiting])
        batch = [waiting[i] for i in chosen]
        waiting = [entry for i, entry in enumerate(waiting) if i not in chosen]
        with listening(stage.model, pitches) as heard:
            outcomes = stage.run([utterance for _, utterance in batch])
        for (index, utterance), outcome in zip(batch, outcomes, strict=True):
            key = id(utterance.noise)
            if isinstance(outcome, Exception):
                found[index].s3gen_error = str(outcome)
            elif not bool(outcome.isfinite().all()):
                found[index].s3gen_error = "the waveform is not finite"
            elif key not in heard.mels or key not in heard.pitches:
                found[index].s3gen_error = "the stage made a waveform without its model's vocoder"
            else:
                into.save("mel", index, heard.mels[key].float().cpu().numpy())
                into.save("pitch", index, heard.pitches[key].float().cpu().numpy())
                into.save("wave", index, outcome.numpy())


@dataclass
class Heard:
    """What passed through the model while its stage ran, by the identity of the utterance's noise.

    Attributes:
        mels: [frames, mels] float32, as the vocoder got them.
        pitches: [frames] in Hz, as the model found them.
    """

    mels: dict[int, torch.Tensor] = field(default_factory=dict)
    pitches: dict[int, torch.Tensor] = field(default_factory=dict)


@contextmanager
def listening(model: S3Gen, pitches: dict[int, torch.Tensor]) -> Iterator[Heard]:
    """Within, keep what the vocoder gets and finds, and let it sing at `pitches`, where there is one for an utterance.

    Args:
        pitches: [frames] in Hz, by the identity of the utterance's noise.
    """
    heard = Heard()
    waveform = model.waveform

    def keep(mels: Sequence[torch.Tensor], noises: Sequence[S3GenNoise]) -> list[torch.Tensor]:
        keys = [id(noise) for noise in noises]
        heard.mels.update(zip(keys, mels, strict=True))
        replace = partial(_replace_pitch, heard, dict(zip(keys, mels, strict=True)), pitches)
        handle = model.vocoder.f0_predictor.register_forward_hook(replace)
        try:
            return waveform(mels, noises)
        finally:
            handle.remove()

    model.waveform = keep  # type: ignore[method-assign]
    try:
        yield heard
    finally:
        del model.waveform


def _replace_pitch(
    heard: Heard,
    mels: dict[int, torch.Tensor],
    pitches: dict[int, torch.Tensor],
    module: torch.nn.Module,
    inputs: tuple[Any, ...],
    found: torch.Tensor,
) -> torch.Tensor:
    """For one utterance, a mel [1, mels, frames], whose pitch [1, frames] was found."""
    (mel,) = inputs
    row = mel[0].T
    alike = (key for key, own in mels.items() if own.shape == row.shape and torch.equal(own.to(row), row))
    key = next(alike, None)
    if key is None:
        raise GenerationError("the vocoder takes the pitch of a mel that it was not given")
    heard.pitches[key] = found[0]
    given = pitches.get(key)
    if given is None:
        return found
    if len(given) != found.shape[-1]:
        raise GenerationError(f"pitch of {len(given)} frames was given for a mel of {found.shape[-1]}")
    return given.to(found).expand_as(found)
