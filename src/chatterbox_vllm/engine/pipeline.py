"""The one loop: texts are admitted to T3, finished tokens go to S3Gen in batches, results leave as they are ready."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from chatterbox_vllm.audio.watermark import Watermarker
from chatterbox_vllm.config import T3Config
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest, SpeechResult, draw_seed
from chatterbox_vllm.engine.s3gen_stage import S3GenStage, TokensToSpeak
from chatterbox_vllm.engine.t3_stage import T3Output
from chatterbox_vllm.errors import ChatterboxError, ConfigError, GenerationError, TextTooLongError
from chatterbox_vllm.models.t3.conditioning import PromptBuilder
from chatterbox_vllm.text.normalize import normalize_punctuation
from chatterbox_vllm.text.tokenizer import EnglishTokenizer
from chatterbox_vllm.voices import Voice

logger = logging.getLogger(__name__)

SAMPLE_RATE = 24_000
_CACHED_CONDITIONINGS = 64


class Talker(Protocol):
    """What the pipeline needs of its T3 stage."""

    def add(
        self,
        request_id: str,
        prompt: torch.Tensor,
        parameters: SpeechParameters,
        seed: int,
        uniforms: Sequence[float] | None = None,
    ) -> None: ...
    def step(self) -> list[T3Output]: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...
    @property
    def unfinished(self) -> bool: ...


@dataclass(frozen=True)
class _Job:
    index: int
    request: SpeechRequest
    seed: int


class Pipeline:
    """Text to waveform through both stages. One `run` at a time."""

    def __init__(
        self,
        config: T3Config,
        tokenizer: EnglishTokenizer,
        prompts: PromptBuilder,
        talker: Talker,
        s3gen: S3GenStage,
        watermarker: Watermarker | None,
        max_model_len: int,
        max_batch_size: int,
    ):
        self.config = config
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.talker = talker
        self.s3gen = s3gen
        self.watermarker = watermarker
        self.max_model_len = max_model_len
        # Enough queued that T3's batch stays full, few enough that prompts take little memory.
        self.max_admitted = 2 * max_batch_size
        self._conditionings: dict[tuple[str, float], torch.Tensor] = {}
        self._runs = 0
        self._running = False

    def run(
        self, requests: Sequence[SpeechRequest], on_step: Callable[[int], None] | None = None
    ) -> Iterator[SpeechResult]:
        """Speak all requests; yield each result when it is ready, failures included, in no particular order.

        Closing the iterator early drops what is left.

        Args:
            on_step: called after every step of T3 with the number of texts that it is still speaking.

        Raises:
            ConfigError: an earlier run is neither exhausted nor closed.
        """
        if self._running:
            raise ConfigError("an earlier run of this model is not finished: exhaust its iterator or close() it")
        self._running = True
        self._runs += 1
        waiting = deque(
            _Job(i, r, draw_seed() if r.parameters.seed is None else r.parameters.seed) for i, r in enumerate(requests)
        )
        talking: dict[str, _Job] = {}
        spoken: list[tuple[_Job, TokensToSpeak, T3Output]] = []
        try:
            while waiting or talking or spoken:
                while waiting and len(talking) < self.max_admitted:
                    job = waiting.popleft()
                    try:
                        talking[self._admit(job)] = job
                    except ChatterboxError as error:
                        yield SpeechResult(job.index, job.seed, error=error)
                for output in self.talker.step() if talking else []:
                    job = talking.pop(output.request_id)
                    try:
                        spoken.append((job, self._tokens_to_speak(job, output), output))
                    except ChatterboxError as error:
                        yield SpeechResult(job.index, job.seed, error=error)
                if on_step is not None:
                    on_step(len(talking))
                while spoken and (len(spoken) >= self.s3gen.max_batch_size or not talking):
                    batch = _take_batch(spoken, self.s3gen.max_batch_size)
                    yield from self._voice(batch)
        finally:
            self._running = False
            self.talker.abort(list(talking))

    def _admit(self, job: _Job) -> str:
        request = job.request
        prompt = self._prompt(request)
        request_id = f"{self._runs}-{job.index}"
        self.talker.add(request_id, prompt, request.parameters, job.seed, request.uniforms)
        return request_id

    def _prompt(self, request: SpeechRequest) -> torch.Tensor:
        """T3's prompt for a request, [P, streams * H].

        Raises:
            ConfigError: there is nothing to say.
            TextTooLongError: the text and its speech do not fit the model length.
        """
        text, parameters = request.text, request.parameters
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"there is no text to speak in {text!r}; give at least one word")
        tokens = self.tokenizer.encode(normalize_punctuation(text))
        room = min(
            self.config.text_positions - 2, self.max_model_len - parameters.max_tokens - self.prompts.prompt_length(0)
        )
        if len(tokens) > room:
            raise TextTooLongError(
                f"the text of {len(text)} characters is {len(tokens)} tokens long; with "
                f"max_tokens={parameters.max_tokens} and max_model_len={self.max_model_len} there is room for "
                f"{max(room, 0)}: split the text, or lower max_tokens, or raise max_model_len"
            )
        if parameters.max_tokens > self.config.speech_positions - 1:
            raise ConfigError(
                f"max_tokens={parameters.max_tokens} is more than this model's {self.config.speech_positions - 1}"
            )
        return self.prompts.prompt(self._conditioning(request.voice, parameters.exaggeration), tokens)

    def _conditioning(self, voice: Voice, exaggeration: float) -> torch.Tensor:
        key = (voice.key, float(exaggeration))
        found = self._conditionings.pop(key, None)
        if found is None:
            found = self.prompts.conditioning(voice.speaker_embedding, voice.speech_prompt, exaggeration)
        self._conditionings[key] = found  # last in: least likely to go next
        if len(self._conditionings) > _CACHED_CONDITIONINGS:
            del self._conditionings[next(iter(self._conditionings))]
        return found

    def _tokens_to_speak(self, job: _Job, output: T3Output) -> TokensToSpeak:
        """Drops what is no speech: everything from the first end-of-speech on, and ids outside the codebook."""
        tokens = output.token_ids
        if self.config.stop_speech_token in tokens:
            tokens = tokens[: tokens.index(self.config.stop_speech_token)]
        tokens = tuple(token for token in tokens if token < self.config.start_speech_token)
        if not tokens:
            raise GenerationError(
                f"the model ended its speech before the first sound (seed {job.seed}); try another seed or text"
            )
        if output.finish_reason == "length":
            logger.warning(
                "text %d reached max_tokens=%d without end of speech; its end may be missing or invented",
                job.index,
                job.request.parameters.max_tokens,
            )
        request = job.request
        return TokensToSpeak(tokens, request.voice, request.parameters.diffusion_steps, job.seed, request.noise)

    def _voice(self, batch: list[tuple[_Job, TokensToSpeak, T3Output]]) -> Iterator[SpeechResult]:
        outcomes = self.s3gen.run([utterance for _, utterance, _ in batch])
        for (job, utterance, output), outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, ChatterboxError):
                yield SpeechResult(job.index, job.seed, error=outcome)
                continue
            if self.watermarker is not None:
                outcome = torch.from_numpy(self.watermarker.apply(outcome.numpy()))
            yield SpeechResult(
                job.index,
                job.seed,
                audio=outcome,
                speech_tokens=utterance.speech_tokens,
                finish_reason=output.finish_reason,
            )


def _take_batch(
    spoken: list[tuple[_Job, TokensToSpeak, T3Output]], size: int
) -> list[tuple[_Job, TokensToSpeak, T3Output]]:
    """Remove from `spoken` and return up to `size` utterances of the first one's step count."""
    steps = spoken[0][1].steps
    batch = [entry for entry in spoken if entry[1].steps == steps][:size]
    spoken[:] = [entry for entry in spoken if entry not in batch]
    return batch
