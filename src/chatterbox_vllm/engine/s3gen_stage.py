"""The S3Gen stage: finished speech tokens become waveforms, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatterbox_vllm.errors import ChatterboxError, GenerationError
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.voices.voice import Voice

# Of prompts and generation together: a batch of more is split, so that its memory is bounded (32 of 20 s and 10 s).
MOST_FRAMES = 48_000


@dataclass(frozen=True)
class TokensToSpeak:
    """One utterance for S3Gen.

    Attributes:
        speech_tokens: codebook ids only, special tokens removed.
        steps: diffusion steps.
        noise: given, or drawn from `seed` on the stage's device.
    """

    speech_tokens: tuple[int, ...]
    voice: Voice
    steps: int
    seed: int
    noise: S3GenNoise | None = None


class S3GenStage:
    """Runs S3Gen over batches of utterances of one step count; each result is what the utterance gets alone."""

    def __init__(self, model: S3Gen, max_batch_size: int, max_frames: int = MOST_FRAMES):
        self.model = model
        self.max_frames = max_frames
        self.max_batch_size = max_batch_size

    def release(self) -> None:
        """Let the model go; nothing runs here any more."""
        del self.model

    def choose(self, waiting: Sequence[TokensToSpeak]) -> list[int]:
        """Indices of those to run next, in order: the first, which waits longest, and those nearest it in length.

        All of one step count, at most `max_batch_size`, and no more frames than memory is meant for.
        """
        if not waiting:
            return []
        first = waiting[0]
        alike = [i for i, utterance in enumerate(waiting) if utterance.steps == first.steps]
        alike.sort(key=lambda i: abs(self._frames(waiting[i]) - self._frames(first)))
        chosen: list[int] = []
        frames = 0
        for i in alike[: self.max_batch_size]:
            frames += self._frames(waiting[i])
            if chosen and frames > self.max_frames:
                break
            chosen.append(i)
        return sorted(chosen)

    def _frames(self, utterance: TokensToSpeak) -> int:
        return self.model.frames(len(utterance.speech_tokens), utterance.voice.prompt)[0]

    def run(self, utterances: Sequence[TokensToSpeak]) -> list[torch.Tensor | ChatterboxError]:
        """Waveforms [samples], float32 on the CPU, or the error of an utterance that could not be spoken.

        At most `max_batch_size` utterances, all of one step count. Where a batch fails, its utterances are tried one by
        one, so that the one at fault does not take the others with it.
        """
        try:
            return list(self._synthesize(utterances))
        except Exception as error:
            if len(utterances) == 1:
                return [_as_own_error(error)]
        return [outcome for utterance in utterances for outcome in self.run([utterance])]

    def _synthesize(self, utterances: Sequence[TokensToSpeak]) -> list[torch.Tensor]:
        requests = [
            S3GenRequest(
                speech_tokens=torch.tensor(utterance.speech_tokens, dtype=torch.int64),
                prompt=utterance.voice.prompt,
                noise=utterance.noise or self._noise(utterance),
            )
            for utterance in utterances
        ]
        return [wave.cpu() for wave in self.model.synthesize(requests, steps=utterances[0].steps)]

    def _noise(self, utterance: TokensToSpeak) -> S3GenNoise:
        generator = torch.Generator(self.model.device).manual_seed(utterance.seed)
        return self.model.draw_noise(generator, len(utterance.speech_tokens), utterance.voice.prompt)


def _as_own_error(error: Exception) -> ChatterboxError:
    if isinstance(error, ChatterboxError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return GenerationError(f"S3Gen ran out of memory for this utterance; shorten the text or the batch ({error})")
    return GenerationError(f"S3Gen failed: {error}")
