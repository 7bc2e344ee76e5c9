"""What a model family is: everything that is particular to it, in one place.

A family is a recipe of data and makers. The rooms above (engine, setup, evaluation, the command line) ask it and never
look at its name, so that another family is another module beside english.py and a row in registry.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.ending import AS_SPOKEN, SpeechEnding
from chatterbox_vllm.families.parameters import SpeechValues
from chatterbox_vllm.t3.backbone import PromptRows
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.text.languages.detection import detect_language

# Of languages that have several (ISO 639), those that are not in `Family.languages`.
_OTHER_CODES = {"nb": "no", "nn": "no", "cmn": "zh", "iw": "he", "eng": "en"}


class TextTokenizer(Protocol):
    """From normalised text to T3's text tokens.

    Attributes:
        special_tokens: as the tokenizer spells those that stand for something else than their characters, and whose
            words are spoken where somebody writes them.
        tags: as it spells those that are there to be written, such as "[chuckle]".
        unknown_id: stands for every character that the vocabulary lacks; None where it lacks none.
    """

    special_tokens: frozenset[str]
    tags: frozenset[str]
    unknown_id: int | None

    def encode(self, text: str, language: str | None = None, prepared: bool = False) -> list[int]:
        """Ids without start and stop.

        Args:
            language: the text's, a code of `Family.languages`; None is the model's only one.
            prepared: what takes a library was done by whoever wrote the text, see `SpeechRequest.prepared_text`.
        """

    def unknown_letters(self, text: str, language: str | None = None, prepared: bool = False) -> list[str]:
        """Letters, digits and signs of currencies that become `unknown_id`, each once."""


class Normalizer(Protocol):
    """From a piece of text to the form that the model was trained on.

    A piece may begin inside a sentence, or end between two words of one.
    """

    def __call__(self, text: str, *, starts_sentence: bool, ends_sentence: bool) -> str: ...


@dataclass(frozen=True)
class Borrowed:
    """Files that a family takes from another repository than its own."""

    repository: str
    revision: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as users say it and `config.json` names it.
        languages: that it speaks, their English names by their codes (ISO 639-1).
        repository: hub id; `revision` is the commit that its files are listed of, None where none is known: then the
            newest of the main branch is taken.
        t3, s3gen, voice_encoder, builtin_voice: file names in the repository.
        tokenizer: names of the files that the tokenizer is read from.
        config: the published dimensions, the talker's guidance streams and the flow's kind among them.
        defaults: how it speaks where nobody says otherwise.
        absent: parameters of `SpeechParameters` that it does not have.
        read_tokenizer: from the directory that holds the tokenizer's files.
        normalize: a piece of text, before it is tokenized.
        read_prompt_builder: from T3's file; makes T3's prompts of conditioning and text tokens.
        ending: how its utterances end.
        licence: of the weights, as the model's card says.
        borrowed: of `files`, those that lie elsewhere.
    """

    name: str
    languages: Mapping[str, str]
    repository: str
    revision: str | None
    t3: str
    s3gen: str
    voice_encoder: str
    tokenizer: tuple[str, ...]
    builtin_voice: str
    config: ModelConfig
    defaults: SpeechValues
    read_tokenizer: Callable[[Path], TextTokenizer]
    normalize: Normalizer
    read_prompt_builder: Callable[[T3Config, Weights], PromptRows]
    absent: frozenset[str] = frozenset()
    ending: SpeechEnding = AS_SPOKEN
    licence: str = "MIT"
    borrowed: Borrowed | None = None

    def language(self, given: str) -> str:
        """The code of a language that is given by its code, its tag with a region ("pt-BR"), or its English name.

        Raises:
            ConfigError: the family does not speak it.
        """
        word = given.strip().lower()
        code = re.split("[-_]", word)[0]
        code = _OTHER_CODES.get(code, code)
        if code in self.languages:
            return code
        for known, name in self.languages.items():
            if word == name.lower():
                return known
        spoken = ", ".join(f"{name} ({known})" for known, name in self.languages.items())
        raise ConfigError(f"the {self.name} model does not speak {given!r}; it speaks {spoken}")

    def language_of(self, text: str, given: str | None = None) -> str:
        """The code of the language that a text is spoken in: the one given, the family's only one, or the text's own.

        Raises:
            ConfigError: the family does not speak it, or it cannot be told.
        """
        if given is not None:
            return self.language(given)
        return self.only_language or detect_language(text, self.languages)

    @property
    def only_language(self) -> str | None:
        """The code of its language, where it has one alone."""
        return next(iter(self.languages)) if len(self.languages) == 1 else None

    @property
    def language_of_english(self) -> str:
        """What English texts of our own are spoken in, where speech is measured and not listened to."""
        return self.only_language or "en"

    def defaults_of(self, config: ModelConfig) -> SpeechValues:
        """How a model of the family speaks where nobody says otherwise: `defaults`, but as its configuration says."""
        return replace(
            self.defaults,
            diffusion_steps=config.diffusion_steps or self.defaults.diffusion_steps,
            max_tokens=min(self.defaults.max_tokens, backbone_of(config.t3).most_speech_tokens(config.t3)),
        )

    def parameters_of(self, config: ModelConfig) -> dict[str, float]:
        """`defaults_of` by name, of the parameters that the family has."""
        values = asdict(self.defaults_of(config))
        return {name: value for name, value in values.items() if name not in self.absent}

    @property
    def optional_files(self) -> tuple[str, ...]:
        """Of `files`, what a repository need not hold."""
        return (self.builtin_voice,)

    @property
    def files(self) -> tuple[str, ...]:
        """Everything to download, the built-in voice included."""
        return (self.voice_encoder, self.t3, self.s3gen, *self.tokenizer, self.builtin_voice)

    @property
    def own_files(self) -> tuple[str, ...]:
        """Of `files`, those of its own repository."""
        elsewhere = () if self.borrowed is None else self.borrowed.files
        return tuple(file for file in self.files if file not in elsewhere)
