"""The families that this version speaks, by name."""

from __future__ import annotations

from pathlib import Path

from chatterbox_vllm.checkpoint.config import CONFIG_FILE, ModelConfig
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.multilingual import MULTILINGUAL, MULTILINGUAL_V3, SINGLE_LANGUAGES
from chatterbox_vllm.families.turbo import NANO, TURBO

_ALL = (ENGLISH, MULTILINGUAL, MULTILINGUAL_V3, *SINGLE_LANGUAGES, TURBO, NANO)
FAMILIES = {family.name: family for family in _ALL}
# What files without a `config.json` are, and what is spoken with where nobody names a model.
DEFAULT_FAMILY = ENGLISH


def family_of(name: str | None, directory: Path | None = None) -> Family:
    """The family that a configuration names.

    Args:
        directory: of the configuration, for the error.

    Raises:
        ConfigError: there is none such.
    """
    if name is None:
        return DEFAULT_FAMILY
    if name not in FAMILIES:
        where = "" if directory is None else f"{directory}: "
        raise ConfigError(f"{where}unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def config_of(directory: Path) -> ModelConfig:
    """The dimensions of the model in a directory: of its `config.json`, or else of the family whose T3 file lies there.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    if (directory / CONFIG_FILE).exists():
        return ModelConfig.from_file(directory / CONFIG_FILE)
    there = (family for family in FAMILIES.values() if (directory / family.t3).exists())
    return next(there, DEFAULT_FAMILY).config


def multilingual_family(t3_model: str | None = None) -> Family:
    """The multilingual family that the published class means by `t3_model`, or that is named so.

    Raises:
        ConfigError: it is none of them.
    """
    published: dict[str | None, Family] = {None: MULTILINGUAL}
    for version, family in (("v2", MULTILINGUAL), ("v3", MULTILINGUAL_V3)):
        for name in (version, family.t3, family.t3.removesuffix(".safetensors")):
            published[name] = family
    named = {family.name: family for family in (MULTILINGUAL, MULTILINGUAL_V3, *SINGLE_LANGUAGES)}
    if t3_model in published:
        return published[t3_model]
    if t3_model in named:
        return named[t3_model]
    raise ConfigError(f"t3_model must be v2, v3 or one of {', '.join(named)}, not {t3_model!r}")
