"""From a request's text and voice to the prompts that T3 takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from chatterbox_vllm.caches.memory import MemoryCache
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.cpu.helpers import without_helpers
from chatterbox_vllm.engine.request import SpeechParameters, SpeechRequest
from chatterbox_vllm.engine.source import Source
from chatterbox_vllm.errors import ConfigError, TextTooLongError
from chatterbox_vllm.families.family import TextTokenizer
from chatterbox_vllm.families.parameters import SpeechValues
from chatterbox_vllm.families.registry import family_of
from chatterbox_vllm.t3.backbone import PromptRows
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.options import SharedPrefix
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.text.languages.rules import rules_of
from chatterbox_vllm.text.script import read_script
from chatterbox_vllm.text.split import Segment
from chatterbox_vllm.text.writing_systems import warn_of_unknown_letters
from chatterbox_vllm.voices.voice import Voice, check_voice

_CONDITIONINGS_BYTES = 34 << 20  # 256 of them at the published size
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
        conditioning: [C, H] in T3's dtype.
        voice: stands for what is in them.
        source: of a conversion, which is one piece: the speech tokens that T3 need not speak.
        language: the code of the language that it is spoken in.
    """

    pieces: list[Piece]
    conditioning: torch.Tensor
    voice: str = ""
    language: str | None = None
    source: Source | None = None

    @property
    def shared_prefix(self) -> SharedPrefix:
        """What the prompts of all pieces begin with."""
        return SharedPrefix(self.voice, len(self.conditioning))


@dataclass(frozen=True)
class _Reading:
    """What the tokenizer is told of a text: see `TextTokenizer.encode`."""

    language: str
    prepared: bool = False


class PromptMaker:
    """Splits texts, tokenizes segments, conditions on voices. For several threads.

    Args:
        config: of the model.
        tokenizer, builder: of its family, read from its files.
        max_model_len: longest sequence of T3, prompt and speech tokens together.
        dtype: of the prompts.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: TextTokenizer,
        builder: PromptRows,
        max_model_len: int,
        dtype: torch.dtype = torch.float32,
    ):
        self.config = config
        self.family = family_of(config.family)
        self.defaults = self.family.defaults_of(config)
        self.tokenizer = tokenizer
        self.builder = builder
        self.max_model_len = max_model_len
        self.dtype = dtype
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
        speech_prompt = len(request.voice.conditioning.speech_prompt)
        reading = _Reading(self.family.language_of(request.text, request.language), request.prepared_text)
        segments = self._segments(request, reading.language)
        pieces = [self._piece(segment, request.parameters, values, reading, speech_prompt) for segment in segments]
        self._warn_of_unknown_letters(pieces, reading)
        uniforms = request.uniforms
        if uniforms is not None and len(uniforms) < pieces[0].values.max_tokens:
            raise ConfigError(
                f"uniforms holds {len(uniforms)} draws for max_tokens={pieces[0].values.max_tokens}; give one for each"
            )
        speaker = request.voice.conditioning
        conditioning = self._conditioning(speaker, values.exaggeration)
        return Script(pieces, conditioning, f"{speaker.key} {values.exaggeration}", reading.language)

    def count_text_tokens(self, text: str, language: str | None = None, prepared: bool = False) -> int:
        """How many text tokens a text has as it stands.

        Raises:
            ConfigError: its language cannot be told or prepared.
        """
        return len(self.tokenizer.encode(text, self.family.language_of(text, language), prepared))

    def prompt(self, conditioning: torch.Tensor, piece: Piece) -> torch.Tensor:
        """T3's prompt for a piece, [P, streams * H]."""
        with without_helpers():
            return self.builder.prompt(conditioning, piece.tokens)

    def prompt_of(
        self, text: str, voice: Voice, parameters: SpeechParameters, language: str | None = None
    ) -> tuple[torch.Tensor, SpeechValues]:
        """T3's prompt for one piece of text, and the values to speak it with: for what measures T3 alone.

        Args:
            language: None is what English texts are spoken in.

        Raises:
            ConfigError, TextTooLongError: see `script`.
        """
        values = self.values(parameters)
        reading = _Reading(language or self.family.language_of_english)
        piece = self._piece(Segment(text, 0.0), parameters, values, reading, len(voice.conditioning.speech_prompt))
        return self.prompt(self._conditioning(voice.conditioning, values.exaggeration), piece), piece.values

    def values(self, parameters: SpeechParameters) -> SpeechValues:
        """What is asked for, and the model's defaults for the rest.

        Raises:
            ConfigError: a parameter that the family does not have, or more tokens than the model has positions for.
        """
        family, most = self.family, backbone_of(self.builder.config).most_speech_tokens(self.builder.config)
        values = parameters.resolved(self.defaults, family.absent, f"the {family.name} model")
        if parameters.max_tokens is not None and parameters.max_tokens > most:
            raise ConfigError(f"max_tokens={parameters.max_tokens} is more than this model's {most}")
        return values

    def segments(self, request: SpeechRequest) -> list[Segment]:
        """The pieces that a request's text is spoken in, at least one.

        Raises:
            ConfigError: the text cannot be spoken (see `read_script`), its language cannot be told, or replayed
                randomness is given for more than one piece.
        """
        return self._segments(request, self.family.language_of(request.text, request.language))

    def _segments(self, request: SpeechRequest, language: str) -> list[Segment]:
        longest = self._longest(request, language)
        segments = read_script(
            request.text,
            request.pauses,
            request.clean_text,
            longest,
            special_tokens=self.tokenizer.special_tokens,
            tags=self.tokenizer.tags,
            scripts=rules_of(language).scripts,
            language=language,
        )
        if len(segments) > 1 and (request.noise is not None or request.uniforms is not None):
            raise ConfigError(
                f"noise and uniforms were given for a text of {len(request.text)} characters, which is spoken in "
                f"{len(segments)} segments; give them for texts of at most {longest} characters"
            )
        return segments

    def _longest(self, request: SpeechRequest, language: str) -> int:
        """Most characters of a piece: fewer than usual where the model length has no room for the usual speech."""
        room = self.max_model_len - self.builder.prompt_length(0, len(request.voice.conditioning.speech_prompt))
        rules = rules_of(language)
        if request.parameters.max_tokens is not None:
            return rules.longest
        return max(1, min(rules.longest, room // rules.positions))

    def _piece(
        self,
        segment: Segment,
        parameters: SpeechParameters,
        values: SpeechValues,
        reading: _Reading,
        speech_prompt: int,
    ) -> Piece:
        most = backbone_of(self.builder.config).most_text_tokens(self.builder.config)
        tokens = self.tokenizer.encode(self._normalized(segment), reading.language, reading.prepared)
        free = self.max_model_len - self.builder.prompt_length(len(tokens), speech_prompt)
        speech = values.max_tokens
        if parameters.max_tokens is None:
            speech = min(speech, max(free, _LEAST_SPEECH_TOKENS))
            if (blocks := self.builder.config.blocks) is not None:
                speech = min(speech, blocks.most_tokens(len(tokens) + 2))
        if len(tokens) > most or speech > free:
            room = min(most, len(tokens) + free - speech)
            raise TextTooLongError(
                f"a text of {len(segment.text)} characters is {len(tokens)} tokens long; with max_tokens={speech} and "
                f"max_model_len={self.max_model_len} there is room for {max(room, 0)}: lower max_tokens, or raise "
                "max_model_len, or put spaces or full stops into the text"
            )
        return Piece(segment, tokens, replace(values, max_tokens=speech))

    def _normalized(self, segment: Segment) -> str:
        return self.family.normalize(
            segment.text, starts_sentence=segment.starts_sentence, ends_sentence=segment.ends_sentence
        )

    def _warn_of_unknown_letters(self, pieces: list[Piece], reading: _Reading) -> None:
        unknown: dict[str, None] = {}
        for piece in pieces:
            if self.tokenizer.unknown_id in piece.tokens:
                text = self._normalized(piece.segment)
                unknown |= dict.fromkeys(self.tokenizer.unknown_letters(text, reading.language, reading.prepared))
        warn_of_unknown_letters(list(unknown))

    def _conditioning(self, speaker: SpeakerConditioning, exaggeration: float) -> torch.Tensor:
        return self._conditionings.get(
            (speaker.key, float(exaggeration)),
            lambda: self.builder.conditioning(speaker.speaker_embedding, speaker.speech_prompt, exaggeration).to(
                self.dtype
            ),
        )
