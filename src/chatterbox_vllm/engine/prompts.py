"""From a request's text and voice to the prompts that T3 takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from chatterbox_vllm.caches.memory import MemoryCache
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest
from chatterbox_vllm.engine.source import Source
from chatterbox_vllm.errors import ConfigError, TextTooLongError
from chatterbox_vllm.families.family import TextTokenizer
from chatterbox_vllm.families.parameters import SpeechValues
from chatterbox_vllm.families.registry import family_of
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.text.script import read_script
from chatterbox_vllm.text.split import LONGEST, Segment
from chatterbox_vllm.voices.voice import Voice, check_voice

_CONDITIONINGS_BYTES = 34 << 20  # 256 of them at the published size
# What a character of text takes of a sequence: a text token, and speech at half the usual 15 characters a second.
_POSITIONS_PER_CHARACTER = 4
_LEAST_SPEECH_TOKENS = 25  # a second of speech


@dataclass(frozen=True)
class Piece:
    """A segment of a text, ready for T3.

    Attributes:
        segment: the text and the pause after it.
        tokens: its text tokens.
        values: how it is spoken; `max_tokens` fits the model length.
    """

    segment: Segment
    tokens: list[int]
    values: SpeechValues


@dataclass(frozen=True)
class Script:
    """All pieces of a request, and the conditioning rows of its voice.

    Attributes:
        source: of a conversion, which is one piece: the speech tokens that T3 need not speak.
    """

    pieces: list[Piece]
    conditioning: torch.Tensor
    source: Source | None = None


class PromptMaker:
    """Splits texts, tokenizes segments, conditions on voices. For several threads.

    Args:
        config: of the model.
        tokenizer, builder: of its family, read from its files.
        max_model_len: longest sequence of T3, prompt and speech tokens together.
    """

    def __init__(self, config: ModelConfig, tokenizer: TextTokenizer, builder: PromptBuilder, max_model_len: int):
        self.config = config
        self.family = family_of(config.family)
        self.defaults = self.family.defaults_of(config)
        self.tokenizer = tokenizer
        self.builder = builder
        self.max_model_len = max_model_len
        self._conditionings: MemoryCache[tuple[str, float], torch.Tensor] = MemoryCache(
            lambda rows: rows.nbytes, _CONDITIONINGS_BYTES
        )

    def script(self, request: SpeechRequest) -> Script:
        """Everything that T3 needs to know of a request; takes milliseconds, and a second for a megabyte of text.

        Raises:
            ConfigError: the text cannot be spoken, the voice is not for this model, or a parameter is out of range.
            TextTooLongError: a piece of the text and its speech do not fit the model length.
        """
        check_voice(request.voice, self.config)
        values = self.values(request.parameters)
        segments = self.segments(request)
        pieces = [self._piece(segment, request.parameters, values) for segment in segments]
        uniforms = request.uniforms
        if uniforms is not None and len(uniforms) < pieces[0].values.max_tokens:
            raise ConfigError(
                f"uniforms holds {len(uniforms)} draws for max_tokens={pieces[0].values.max_tokens}; give one for each"
            )
        return Script(pieces, self._conditioning(request.voice.conditioning, values.exaggeration))

    def prompt(self, conditioning: torch.Tensor, piece: Piece) -> torch.Tensor:
        """T3's prompt for a piece, [P, streams * H]."""
        return self.builder.prompt(conditioning, piece.tokens)

    def prompt_of(self, text: str, voice: Voice, parameters: SpeechParameters) -> tuple[torch.Tensor, SpeechValues]:
        """T3's prompt for one piece of text, and the values to speak it with: for what measures T3 alone.

        Raises:
            ConfigError, TextTooLongError: see `script`.
        """
        values = self.values(parameters)
        piece = self._piece(Segment(text, 0.0), parameters, values)
        return self.prompt(self._conditioning(voice.conditioning, values.exaggeration), piece), piece.values

    def values(self, parameters: SpeechParameters) -> SpeechValues:
        """What is asked for, and the model's defaults for the rest.

        Raises:
            ConfigError: a parameter that the family does not have, or more tokens than the model has positions for.
        """
        family, most = self.family, self.builder.config.speech_positions - 1
        values = parameters.resolved(self.defaults, family.absent, f"the {family.name} model")
        if parameters.max_tokens is not None and parameters.max_tokens > most:
            raise ConfigError(f"max_tokens={parameters.max_tokens} is more than this model's {most}")
        return replace(values, max_tokens=min(values.max_tokens, most))

    def segments(self, request: SpeechRequest) -> list[Segment]:
        """The pieces that a request's text is spoken in, at least one.

        Raises:
            ConfigError: the text cannot be spoken (see `read_script`), or replayed randomness is given for more than
                one piece.
        """
        longest = self._longest(request.parameters)
        segments = read_script(
            request.text,
            request.pauses,
            request.clean_text,
            longest,
            special_tokens=self.tokenizer.special_tokens,
            scripts=self.family.scripts,
        )
        if len(segments) > 1 and (request.noise is not None or request.uniforms is not None):
            raise ConfigError(
                f"noise and uniforms were given for a text of {len(request.text)} characters, which is spoken in "
                f"{len(segments)} segments; give them for texts of at most {longest} characters"
            )
        return segments

    def _longest(self, parameters: SpeechParameters) -> int:
        """Most characters of a piece: fewer than usual where the model length has no room for the usual speech."""
        room = self.max_model_len - self.builder.prompt_length(0)
        if parameters.max_tokens is not None:
            return LONGEST
        return max(1, min(LONGEST, room // _POSITIONS_PER_CHARACTER))

    def _piece(self, segment: Segment, parameters: SpeechParameters, values: SpeechValues) -> Piece:
        config = self.builder.config
        text = self.family.normalize(
            segment.text, starts_sentence=segment.starts_sentence, ends_sentence=segment.ends_sentence
        )
        tokens = self.tokenizer.encode(text)
        free = self.max_model_len - self.builder.prompt_length(len(tokens))
        speech = values.max_tokens
        if parameters.max_tokens is None:
            speech = min(speech, max(free, _LEAST_SPEECH_TOKENS))
        if len(tokens) > config.text_positions - 2 or speech > free:
            room = min(config.text_positions - 2, len(tokens) + free - speech)
            raise TextTooLongError(
                f"a text of {len(segment.text)} characters is {len(tokens)} tokens long; with max_tokens={speech} and "
                f"max_model_len={self.max_model_len} there is room for {max(room, 0)}: lower max_tokens, or raise "
                "max_model_len, or put spaces or full stops into the text"
            )
        return Piece(segment, tokens, replace(values, max_tokens=speech))

    def _conditioning(self, speaker: SpeakerConditioning, exaggeration: float) -> torch.Tensor:
        return self._conditionings.get(
            (speaker.key, float(exaggeration)),
            lambda: self.builder.conditioning(speaker.speaker_embedding, speaker.speech_prompt, exaggeration),
        )
