"""The families that this version speaks, by name."""

from __future__ import annotations

from pathlib import Path

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import Family

FAMILIES = {family.name: family for family in (ENGLISH,)}
# What files without a `config.json` are, and what is spoken with where nobody names a model.
DEFAULT_FAMILY = ENGLISH


def family_of(name: str, directory: Path) -> Family:
    """The family that the configuration in `directory` names.

    Raises:
        ConfigError: there is none such.
    """
    if name not in FAMILIES:
        raise ConfigError(f"{directory}: unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]
