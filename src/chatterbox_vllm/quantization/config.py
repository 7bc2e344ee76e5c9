"""What to quantize and how: one `QuantizationConfig`, to which every way of asking for it leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from typing_extensions import Self

from chatterbox_vllm.checkpoint.config import QuantizedPart, QuantizedParts
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.settings import (
    QUANTIZATION_METHOD,
    QUANTIZE_S3GEN,
    QUANTIZE_VOICE_ENCODER,
    USE_QUANTIZATION,
    flag,
)

# What each method is, for `estimate` and for errors.
METHODS: dict[str, str] = {
    "bnb-4bit": "NF4, blocks of 64, double quantization",
    "bnb-8bit": "INT8, a scale for each output row",
    "awq": "4 bits, groups of 128, calibrated; T3 only, made by `chatterbox-vllm quantize`",
    "fp8": "8-bit floats, a scale for each output row; T3 on CUDA only",
}
MODULE_METHODS = ("bnb-4bit", "bnb-8bit")
# The methods of each component.
COMPONENTS: dict[str, tuple[str, ...]] = {
    "t3": tuple(METHODS),
    "s3gen": MODULE_METHODS,
    "voice_encoder": MODULE_METHODS,
}
_AS_SMALL = {"awq": "bnb-4bit", "fp8": "bnb-8bit"}  # where T3's own method cannot be had
_WEAKER = {**_AS_SMALL, "bnb-4bit": "bnb-8bit", "bnb-8bit": None}
_NAMES = {"t3": "T3", "s3gen": "S3Gen", "voice_encoder": "voice encoder"}
# The ready-made choices of `from_pretrained_quantized`: T3, S3Gen, voice encoder.
STRATEGIES: dict[str, tuple[str, str, str]] = {
    "conservative": ("bnb-8bit", "bnb-8bit", "bnb-8bit"),
    "mixed": ("bnb-4bit", "bnb-8bit", "bnb-4bit"),
    "aggressive": ("bnb-4bit", "bnb-4bit", "bnb-4bit"),
    "int8": ("bnb-8bit", "bnb-8bit", "bnb-8bit"),
    "nf4": ("bnb-4bit", "bnb-4bit", "bnb-4bit"),
}
AUTO = "auto"


@dataclass(frozen=True)
class QuantizationConfig:
    """A method for each component; None leaves its weights in 16 bits or better.

    Embeddings, heads, conditioning, final layers, convolutions and the vocoder are never quantized.

    Attributes:
        t3: of the linear layers of T3's transformer: "bnb-4bit", "bnb-8bit", "awq" or "fp8".
        s3gen: of the attention and feed-forward layers of S3Gen's flow: "bnb-4bit" or "bnb-8bit".
        voice_encoder: of the voice encoder's LSTM and projection, likewise.
        double_quant: whether the scales of "bnb-4bit" are quantized, too (Dettmers et al. 2023, arXiv 2305.14314).
    """

    t3: str | None = None
    s3gen: str | None = None
    voice_encoder: str | None = None
    double_quant: bool = True

    def __post_init__(self) -> None:
        _check_method("t3", self.t3, tuple(METHODS))
        _check_method("s3gen", self.s3gen, MODULE_METHODS)
        _check_method("voice_encoder", self.voice_encoder, MODULE_METHODS)
        if not isinstance(self.double_quant, bool):
            raise ConfigError(f"double_quant must be True or False, not {self.double_quant!r}")

    @property
    def active(self) -> bool:
        """Whether anything is quantized."""
        return any(self.methods.values())

    @property
    def methods(self) -> dict[str, str | None]:
        """The method of each component, by its name."""
        return {"t3": self.t3, "s3gen": self.s3gen, "voice_encoder": self.voice_encoder}

    @classmethod
    def from_strategy(cls, strategy: str) -> Self:
        """One of `STRATEGIES`; "auto", which depends on the device, is `planning.strategy_for`'s.

        Raises:
            ConfigError: no such strategy.
        """
        if not isinstance(strategy, str) or strategy not in STRATEGIES:
            known = ", ".join(map(repr, (*STRATEGIES, AUTO)))
            raise ConfigError(f"quantization_strategy must be one of {known}, not {strategy!r}")
        return cls(*STRATEGIES[strategy])

    @classmethod
    def from_options(
        cls,
        use_quantization: bool | None = None,
        quantization_method: str | None = None,
        quantize_s3gen: bool | str | None = None,
        quantize_voice_encoder: bool | str | None = None,
        use_bnb_quantization: bool = False,
        *,
        base: Self | None = None,
        stored: QuantizedParts | None = None,
    ) -> Self | None:
        """What keywords and environment variables ask for together; a keyword goes before its variable.

        The variables are CHATTERBOX_USE_QUANTIZATION, the switch without which, and without a tier, the others are not
        looked at, CHATTERBOX_QUANTIZATION_METHOD, CHATTERBOX_QUANTIZE_S3GEN and CHATTERBOX_QUANTIZE_VOICE_ENCODER.

        Args:
            use_quantization: whether at all; False takes a tier's methods back, too.
            quantization_method: T3's; the tier's by default, or "bnb-4bit".
            quantize_s3gen: a method of its own, or True for T3's, or for "bnb-8bit" where T3's is made for T3 only.
                The tier's by default, or False.
            quantize_voice_encoder: likewise.
            use_bnb_quantization: short for `use_quantization=True, quantization_method="bnb-4bit"`.
            base: what a tier quantizes where nobody says otherwise.
            stored: parts whose files are quantized already; they are what they are, and no default falls on them.

        Returns:
            None where neither keyword nor variable says whether to quantize, and there is no tier.

        Raises:
            ConfigError: an unknown method, keywords that contradict each other, a variable with another value than it
                may have; the message names the keyword or the variable.
        """
        if not isinstance(use_bnb_quantization, bool):
            raise ConfigError(f"use_bnb_quantization must be True or False, not {use_bnb_quantization!r}")
        use = USE_QUANTIZATION.resolve(use_quantization, flag, None)
        if use_bnb_quantization:
            if (use_quantization is not None and not use) or quantization_method not in (None, "bnb-4bit"):
                raise ConfigError(
                    "use_bnb_quantization=True means use_quantization=True, quantization_method='bnb-4bit'; it "
                    f"contradicts use_quantization={use_quantization}, quantization_method={quantization_method!r}"
                )
            use, quantization_method = True, "bnb-4bit"
        if not use and (use is not None or base is None):
            given = {
                QUANTIZATION_METHOD: quantization_method,
                QUANTIZE_S3GEN: quantize_s3gen,
                QUANTIZE_VOICE_ENCODER: quantize_voice_encoder,
            }
            for setting, value in given.items():
                if value not in (None, False):
                    raise ConfigError(f"{setting.keyword}={value!r} means nothing without use_quantization=True")
            return None if use is None else cls()
        stored, default = stored or QuantizedParts(), base or cls()
        t3 = QUANTIZATION_METHOD.resolve(quantization_method, _one_of(tuple(METHODS)), default.t3)
        if use and t3 is None and stored.t3 is None:
            t3 = "bnb-4bit"
        beside = t3 or (stored.t3.method if stored.t3 else None)
        return cls(
            t3,
            QUANTIZE_S3GEN.resolve(quantize_s3gen, _module_method(beside, stored.s3gen), default.s3gen),
            QUANTIZE_VOICE_ENCODER.resolve(
                quantize_voice_encoder, _module_method(beside, stored.voice_encoder), default.voice_encoder
            ),
            default.double_quant,
        )

    def beside(self, stored: QuantizedParts) -> Self:
        """What of this is left to ask for where some parts' files are quantized already."""
        left = {part: None if getattr(stored, part) else method for part, method in self.methods.items()}
        return type(self)(**left, double_quant=self.double_quant)

    def steps_to_what_can_be_had(self, why_not: Callable[[str, str], str | None]) -> Iterator[tuple[str, Self, str]]:
        """The way down where some components' methods cannot be had: theirs alone, each to the next that can.

        Args:
            why_not: of a component and a method, the reason why it cannot be had; None where it can.

        Yields:
            Each step's name, the configuration after it, and the reason.
        """
        config: Self = self
        for component in COMPONENTS:
            while (method := config.methods[component]) is not None and (reason := why_not(component, method)):
                weaker = _WEAKER[method]
                config = type(self)(**{**config.methods, component: weaker}, double_quant=self.double_quant)
                yield f"{_NAMES[component]} {f'in {weaker}' if weaker else 'not quantized'}", config, reason

    def steps_down(self) -> Iterator[tuple[str, Self]]:
        """What to try in turn where this cannot be loaded, each with its name; the last is not quantized at all.

        A method that only T3 has gives way to the one of as many bits that runs anywhere, before anything else is given
        up for it. Then go, in turn: double quantization, the voice encoder's method, S3Gen's, T3's from 4 to 8 bits,
        T3's.
        """
        config: Self = self
        if self.t3 in _AS_SMALL:
            config = replace(config, t3=_AS_SMALL[self.t3])
            yield f"T3 in {config.t3}", config
        if config.double_quant and "bnb-4bit" in config.methods.values():
            config = replace(config, double_quant=False)
            yield "double quantization off", config
        if config.voice_encoder is not None:
            config = replace(config, voice_encoder=None)
            yield "voice encoder not quantized", config
        if config.s3gen is not None:
            config = replace(config, s3gen=None)
            yield "S3Gen not quantized", config
        if config.t3 == "bnb-4bit":
            config = replace(config, t3="bnb-8bit")
            yield "T3 from 4 to 8 bits", config
        if config.t3 is not None:
            config = replace(config, t3=None)
            yield "T3 not quantized", config

    def __str__(self) -> str:
        parts = [f"{name} {method}" for name, method in self.methods.items() if method is not None]
        if not self.double_quant and "bnb-4bit" in self.methods.values():
            parts.append("single quantization of scales")
        return ", ".join(parts) or "nothing quantized"


def _check_method(name: str, value: object, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise ConfigError(f"{name} must be None or one of {', '.join(map(repr, known))}, not {value!r}")


def _one_of(known: tuple[str, ...]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return str(value)

    return parse


def _module_method(t3: str | None, stored: QuantizedPart | None) -> Callable[[object], str | None]:
    """Reads a method, or yes for the one that goes with T3's: the same, or "bnb-8bit" where that is for T3 only.

    A yes to a part that is `stored` quantized asks for nothing more.
    """

    def parse(value: object) -> str | None:
        if value in MODULE_METHODS:
            return str(value)
        try:
            wanted = flag(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {' or '.join(MODULE_METHODS)}") from None
        if not wanted or stored is not None:
            return None
        return t3 if t3 in MODULE_METHODS else "bnb-8bit"

    return parse
