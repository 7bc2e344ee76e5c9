"""What a model family is: everything that is particular to it, in one place.

A family is a recipe of data and makers. The rooms above (engine, setup, evaluation, the command line) ask it and never
look at its name, so that another family is another module beside english.py and a row in registry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.ending import AS_SPOKEN, SpeechEnding
from chatterbox_vllm.families.parameters import SpeechValues
from chatterbox_vllm.t3.conditioning import PromptBuilder


class TextTokenizer(Protocol):
    """From normalised text to T3's text tokens.

    Attributes:
        special_tokens: as the tokenizer spells those that stand for something else than their characters.
    """

    special_tokens: frozenset[str]

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Ids without start and stop.

        Args:
            language: the text's, a code of `Family.languages`; None is the model's only one.
        """


class Normalizer(Protocol):
    """From a piece of text to the form that the model was trained on.

    A piece may begin inside a sentence, or end between two words of one.
    """

    def __call__(self, text: str, *, starts_sentence: bool, ends_sentence: bool) -> str: ...


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as users say it and `config.json` names it.
        languages: that it speaks, their English names by their codes (ISO 639-1).
        scripts: that it can say, by their names in Unicode.
        repository: hub id; `revision` is the commit that this version was checked against.
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
    """

    name: str
    languages: Mapping[str, str]
    scripts: frozenset[str]
    repository: str
    revision: str
    t3: str
    s3gen: str
    voice_encoder: str
    tokenizer: tuple[str, ...]
    builtin_voice: str
    config: ModelConfig
    defaults: SpeechValues
    read_tokenizer: Callable[[Path], TextTokenizer]
    normalize: Normalizer
    read_prompt_builder: Callable[[T3Config, Weights], PromptBuilder]
    absent: frozenset[str] = frozenset()
    ending: SpeechEnding = AS_SPOKEN
    licence: str = "MIT"

    def defaults_of(self, config: ModelConfig) -> SpeechValues:
        """How a model of the family speaks where nobody says otherwise: `defaults`, but as its configuration says."""
        if config.diffusion_steps is None:
            return self.defaults
        return replace(self.defaults, diffusion_steps=config.diffusion_steps)

    @property
    def optional_files(self) -> tuple[str, ...]:
        """Of `files`, what a repository need not hold."""
        return (self.builtin_voice,)

    @property
    def files(self) -> tuple[str, ...]:
        """Everything to download, the built-in voice included."""
        return (self.voice_encoder, self.t3, self.s3gen, *self.tokenizer, self.builtin_voice)
