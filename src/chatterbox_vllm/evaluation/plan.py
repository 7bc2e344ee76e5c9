"""What an evaluation speaks: the same texts, voices, seeds and noise for every model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chatterbox_vllm.engine.request import MAX_SEED, SpeechParameters
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.text.languages.rules import RULES, rules_of
from chatterbox_vllm.text.split import Segment, split_text

# Short and long, questions, numbers and names; the last two fill the longest piece that is spoken at once.
DEFAULT_TEXTS = (
    "Good morning, and thank you for coming.",
    "No, not today.",
    "Did you really walk all the way from the station, in this weather, without an umbrella?",
    "The quick brown fox jumps over the lazy dog, and then it does so once more, to be quite sure of it.",
    "On the third of March 1987, at a quarter past nine, twelve ships left the harbour for Lisbon and Valparaíso.",
    "She sells sea shells by the sea shore; the shells she sells are sea shells, for sure.",
    "When the rain had stopped, the children ran out into the garden, where the old gardener was already tying up the "
    "roses that the wind had torn down in the night, and asked him whether the swing beneath the walnut tree had come "
    "through the storm. He nodded slowly, put his knife away, and smiled.",
    "A library is not a heap of books but a promise: somebody, some day, will ask a question that none of us has "
    "thought of, and the answer will stand there, on a shelf, between two neighbours that nobody has opened for years. "
    "To keep that promise takes patience, dry rooms, and people who can find things.",
)


@dataclass(frozen=True)
class Case:
    """One utterance: a text of one segment, spoken with one of the plan's voices.

    Attributes:
        index: its place in the plan.
        voice: its place among the plan's voices.
        seed: of T3's draws and of S3Gen's noise.
    """

    index: int
    text: str
    voice: int
    seed: int


@dataclass(frozen=True)
class EvaluationPlan:
    """Texts and voices to speak, and how.

    Attributes:
        texts: of any length; long ones are split, and every piece is a case of its own.
        clips: reference clips, one voice each; none stands for the baseline's built-in voice.
        seed: of the first case; each further case has one more.
        cfg_weight, max_tokens, diffusion_steps: as in `SpeechParameters`.
        language: of the texts, see `SpeechRequest`.
        batch_size: most cases spoken at once.
        repeats: how often all cases are spoken; the fastest counts for the speed, as the first records graphs and
            compiles kernels; failures of all count.

    Raises:
        ConfigError: there is no text, or a value is out of range.
    """

    texts: tuple[str, ...] = DEFAULT_TEXTS
    clips: tuple[str, ...] = ()
    seed: int = 1
    cfg_weight: float = 0.5
    max_tokens: int = 1000
    diffusion_steps: int = 10
    language: str | None = None
    batch_size: int = 4
    repeats: int = 2

    def __post_init__(self) -> None:
        if not any(text.strip() for text in self.texts):
            raise ConfigError("there is no text to evaluate with; give at least one word")
        for name in ("batch_size", "repeats"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, not {value!r}")
        if self.language is not None and self.language not in RULES:
            raise ConfigError(f"language must be a code, one of {', '.join(RULES)}, not {self.language!r}")
        self.parameters(self.seed)
        if len(set(self.clips)) < len(self.clips):
            raise ConfigError(f"a reference clip is named twice in {', '.join(self.clips)}; name each once")
        for clip in self.clips:
            if not Path(clip).is_file():
                raise ConfigError(f"there is no reference clip {clip}; give the path of an audio file")

    def parameters(self, seed: int) -> SpeechParameters:
        """How a case of that seed is spoken: the published sampling."""
        return SpeechParameters(
            seed=seed,
            cfg_weight=self.cfg_weight,
            max_tokens=self.max_tokens,
            diffusion_steps=self.diffusion_steps,
        )

    @property
    def voices(self) -> int:
        """How many voices there are."""
        return max(1, len(self.clips))

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every piece of every text with every voice."""
        pieces = [piece.text for text in self.texts if text.strip() for piece in self._pieces(text)]
        pairs = [(piece, voice) for voice in range(self.voices) for piece in pieces]
        return tuple(Case(i, text, voice, (self.seed + i) % (MAX_SEED + 1)) for i, (text, voice) in enumerate(pairs))

    def _pieces(self, text: str) -> list[Segment]:
        rules = rules_of(self.language)
        return split_text(text, rules.longest, self.language)
