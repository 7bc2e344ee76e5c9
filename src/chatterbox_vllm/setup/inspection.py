"""What a model's directory holds, from its configuration and its files' headers: nothing is loaded."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.layout import checkpoint_shapes
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.config import COMPONENTS

_BYTES_FLOAT32 = 4
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")  # where the hub's cache keeps a commit's files
# Components by the beginnings of their tensors' names.
_COMPONENTS = {
    "t3 transformer": ("t3", ("tfmr.", "speech_head.")),
    "t3 conditioning and embeddings": ("t3", ("cond_enc.", "text_", "speech_emb", "speech_pos_emb")),
    "s3gen flow encoder": ("s3gen", ("flow.input", "flow.encoder", "flow.spk")),
    "s3gen flow estimator": ("s3gen", ("flow.decoder.",)),
    "s3gen vocoder": ("s3gen", ("mel2wav.",)),
    "speech tokenizer (enrolment)": ("s3gen", ("tokenizer.",)),
    "x-vector net (enrolment)": ("s3gen", ("speaker_encoder.",)),
    "voice encoder (enrolment)": ("voice_encoder", ("",)),
}


def model_facts(directory: Path) -> dict[str, Any]:
    """What is in a model's directory.

    Returns:
        "directory", "family", "languages": English names by code, "revision" (the commit, of a hub's snapshot; else
        None), "files": size in bytes of each file, None where it is missing; for files of weights also how many tensors
        they hold and their dtypes, "quantized": each part's method or None, "components": see `component_sizes`.

    Raises:
        ConfigError: config.json cannot be read, or names an unknown family.
        CheckpointError: a file of weights is damaged.
    """
    config = config_of(directory)
    family = family_of(config.family, directory)
    file = directory / family.t3
    places = [directory.resolve(), *([file.readlink()] if file.is_symlink() else [])]  # or links into a snapshot
    commit = next(filter(None, (_SNAPSHOT.search(place.as_posix()) for place in places)), None)
    stored = {part: getattr(config.quantized, part) for part in COMPONENTS}
    return {
        "directory": str(directory),
        "family": family.name,
        "languages": dict(family.languages),
        "revision": commit[1] if commit else None,
        "files": {name: _file(directory / name, family) for name in family.files},
        "quantized": {part: None if how is None else how.method for part, how in stored.items()},
        "components": component_sizes(config),
    }


def component_sizes(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Parameters of each component, counted from the model's dimensions, and their bytes in float32."""
    shapes = checkpoint_shapes(config)
    sizes = {}
    for name, (part, starts) in _COMPONENTS.items():
        parameters = sum(math.prod(shape) for key, shape in shapes[part].items() if key.startswith(starts))
        sizes[name] = {"parameters": parameters, "float32_bytes": parameters * _BYTES_FLOAT32}
    return sizes


def _file(path: Path, family: Family) -> dict[str, Any] | None:
    if not path.exists():
        return None
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    if path.name in (family.t3, family.s3gen, family.voice_encoder):
        weights = Weights(path)
        kinds = [weights.storage_type(key) for key in weights.keys]
        facts |= {"tensors": len(kinds), "dtypes": sorted(set(kinds))}
    return facts
