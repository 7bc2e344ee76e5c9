"""A voice: what a reference clip becomes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from typing_extensions import Self

from chatterbox_vllm.checkpoint.config import EnrolmentConfig, ModelConfig, voice_kind
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.voices.saved import read_voice, voice_bytes, write_voice

_TOKENS_PER_SECOND = 25  # of speech


@dataclass(frozen=True, eq=False)
class Voice:
    """One speaker: what conditions the talker, and what the flow continues. On the CPU, and never changed.

    Attributes:
        conditioning: the talker's part, speaker embedding and speech prompt.
        prompt: the flow's part, prompt tokens, prompt mel and x-vector.
        codebook: of the model that made it, see `ModelConfig.codebook`.
        recipe: by which the talker's part was made, see `EnrolmentConfig.recipe`.
    """

    conditioning: SpeakerConditioning
    prompt: FlowPrompt
    codebook: str | None = None
    recipe: str | None = None

    @property
    def kind(self) -> str | None:
        """That of the models which can use it, see `ModelConfig.voice_kind`."""
        return voice_kind(self.codebook, self.recipe)

    @cached_property
    def key(self) -> str:
        """A hash of the contents: equal for equal voices. What depends on one part is better kept by that part's."""
        return f"{self.conditioning.key}{self.prompt.key}"

    @property
    def nbytes(self) -> int:
        return self.conditioning.nbytes + self.prompt.nbytes

    @classmethod
    def load(cls, path: Path | str, config: ModelConfig | None = None) -> Self:
        """Read a voice in the published `conds.pt` structure, without executing anything in the file.

        Files that the published implementation saved after speaking hold ids as floats and a cached prompt embedding;
        both are accepted. The stored emotion is not read.

        Args:
            config: the model that the voice is for; the published sizes by default.

        Raises:
            CheckpointError: the file is missing, damaged or too large, or a value is absent or not what the model
                needs.
        """
        path = Path(path)
        voice = cls.unchecked(path)
        try:
            check_voice(voice, config or ModelConfig())
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from error
        return voice

    @classmethod
    def unchecked(cls, path: Path) -> Self:
        """Read a voice without a look at whether a model can use it.

        Raises:
            CheckpointError: the file is missing, damaged or too large, or a value is absent or of another kind.
        """
        return cls(*read_voice(path))

    def to_bytes(self) -> bytes:
        """The file that `save` would write; equal for equal voices."""
        return voice_bytes(self.conditioning, self.prompt, self.codebook, self.recipe)

    def save(self, path: Path | str, overwrite: bool = True) -> None:
        """Write the voice in the published `conds.pt` structure; `path` is written whole or not at all.

        Args:
            overwrite: whether a file in that place is replaced; where not, it is an error.

        Raises:
            OutputError: the file could not be written.
        """
        write_voice(Path(path), self.conditioning, self.prompt, self.codebook, self.recipe, overwrite)


def check_voice(value: object, config: ModelConfig) -> Voice:
    """Whether a value, of whatever kind, is a voice that a model of this configuration can speak with.

    It takes a tenth of a millisecond, so that every request can be checked.

    Returns:
        The value.

    Raises:
        ConfigError: it is none; the message names what does not fit. Nothing else is ever raised.
    """
    if not issubclass(type(value), Voice):
        raise ConfigError(f"the voice is a {type(value).__name__}, not a Voice; enrol a clip, or load a saved voice")
    try:
        voice = cast(Voice, value)
        for name, part, kind in (
            ("conditioning", voice.conditioning, SpeakerConditioning),
            ("prompt", voice.prompt, FlowPrompt),
        ):
            if not isinstance(part, kind):
                raise ConfigError(f"its {name} is a {type(part).__name__}, not a {kind.__name__}")
        if voice.codebook != config.codebook:
            raise ConfigError(
                f"it holds speech tokens of {voice.codebook or 'the published models'}, and this model's are "
                f"{config.codebook or 'the published ones'}"
            )
        if voice.recipe != config.enrolment.recipe and not _made_alike(voice, config.enrolment):
            raise ConfigError(
                f"its clip was enrolled for models of {_kind(voice.recipe)}, and this one is of "
                f"{_kind(config.enrolment.recipe)}"
            )
        voice.conditioning.check(config.t3)
        voice.prompt.check(config.s3gen)
    except Exception as error:  # an object that only looks like a voice may do anything when it is read
        raise ConfigError(
            f"the voice does not fit this model: {error}; use a voice made for it, or enrol the clip anew"
        ) from error
    return voice


def _made_alike(voice: Voice, recipe: EnrolmentConfig) -> bool:
    """Whether another recipe makes the same of the voice's clip, but for the clip's loudness.

    Published files do not say how they were made. Of a clip that is long enough for Turbo's recipe, and that the first
    Chatterbox's does not cut for T3, both make the same: T3 hears as much of it as the flow does.
    """
    heard = len(voice.conditioning.speech_prompt)
    uncut = abs(len(voice.prompt.tokens) - heard) <= 1  # the last token may be of a part of one
    return voice.recipe is None and uncut and heard >= recipe.least_seconds * _TOKENS_PER_SECOND


def _kind(recipe: str | None) -> str:
    """The models that enrol by a recipe, in words."""
    return "the first Chatterbox's kind" if recipe is None else f"the kind {recipe!r}"
