"""From a request's text and voice to the prompts that T3 takes."""

from __future__ import annotations

import torch

from chatterbox_vllm.caches.memory import MemoryCache
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest
from chatterbox_vllm.errors import ConfigError, TextTooLongError
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.text.normalize import normalize_punctuation
from chatterbox_vllm.text.split import LONGEST, Segment, split_text
from chatterbox_vllm.text.tokenizer import EnglishTokenizer
from chatterbox_vllm.voices.voice import Voice

_CONDITIONINGS_BYTES = 34 << 20  # 256 of them at the published size


class PromptMaker:
    """Splits texts, tokenizes segments, builds prompts; remembers the conditioning rows of recent voices."""

    def __init__(self, tokenizer: EnglishTokenizer, builder: PromptBuilder, max_model_len: int):
        self.tokenizer = tokenizer
        self.builder = builder
        self.max_model_len = max_model_len
        self._conditionings: MemoryCache[tuple[str, float], torch.Tensor] = MemoryCache(
            lambda rows: rows.nbytes, _CONDITIONINGS_BYTES
        )

    def segments(self, request: SpeechRequest) -> list[Segment]:
        """The pieces that a request's text is spoken in, at least one.

        Raises:
            ConfigError: there is nothing to say, or replayed randomness is given for more than one segment.
        """
        if not request.text.strip():
            raise ConfigError(f"there is no text to speak in {request.text[:40]!r}; give at least one word")
        if len(request.text) <= LONGEST:
            return [Segment(request.text, 0.0)]
        segments = split_text(request.text, LONGEST)
        if len(segments) > 1 and (request.noise is not None or request.uniforms is not None):
            raise ConfigError(
                f"noise and uniforms were given for a text of {len(request.text)} characters, which is spoken in "
                f"{len(segments)} segments; give them for texts of at most {LONGEST} characters"
            )
        return segments

    def prompt(self, text: str, voice: Voice, parameters: SpeechParameters) -> torch.Tensor:
        """T3's prompt for one segment, [P, streams * H].

        Raises:
            TextTooLongError: the text and its speech do not fit the model length.
            ConfigError: `max_tokens` is more than the model has positions for.
        """
        config = self.builder.config
        if parameters.max_tokens > config.speech_positions - 1:
            raise ConfigError(
                f"max_tokens={parameters.max_tokens} is more than this model's {config.speech_positions - 1}"
            )
        tokens = self.tokenizer.encode(normalize_punctuation(text))
        room = min(
            config.text_positions - 2, self.max_model_len - parameters.max_tokens - self.builder.prompt_length(0)
        )
        if len(tokens) > room:
            raise TextTooLongError(
                f"a text of {len(text)} characters is {len(tokens)} tokens long; with "
                f"max_tokens={parameters.max_tokens} and max_model_len={self.max_model_len} there is room for "
                f"{max(room, 0)}: lower max_tokens, or raise max_model_len, or put spaces or full stops into the text"
            )
        return self.builder.prompt(self._conditioning(voice.conditioning, parameters.exaggeration), tokens)

    def _conditioning(self, speaker: SpeakerConditioning, exaggeration: float) -> torch.Tensor:
        return self._conditionings.get(
            (speaker.key, float(exaggeration)),
            lambda: self.builder.conditioning(speaker.speaker_embedding, speaker.speech_prompt, exaggeration),
        )
