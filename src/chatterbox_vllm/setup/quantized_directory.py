"""Quantized checkpoints as directories: written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from chatterbox_vllm.caches.disk import appearing_whole
from chatterbox_vllm.checkpoint.config import CONFIG_FILE, ModelConfig, QuantizedPart
from chatterbox_vllm.errors import OutputError
from chatterbox_vllm.families.registry import family_of
from chatterbox_vllm.families.voices import BUILTIN, VOICES, voices_of
from chatterbox_vllm.quantization.files import HEADER
from chatterbox_vllm.quantization.fingerprint import fingerprint
from chatterbox_vllm.quantization.storage import Tensors


def check_output(output: Path) -> None:
    """Refuse to write where something is, before any work is done.

    Raises:
        OutputError: `output` exists, or nothing can be written beside it.
    """
    try:
        if output.exists() or output.is_symlink():
            raise OutputError(f"{output} is there already: remove it, or give another directory")
    except OSError as error:  # a name that is too long
        raise OutputError(f"{output} cannot be written ({error.strerror or error}); give another directory") from error
    parent = output.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{output} cannot be written: {parent} is no directory that can be written to")


def write_checkpoint(
    source: Path, output: Path, config: ModelConfig, parts: Mapping[str, tuple[QuantizedPart, Tensors]]
) -> ModelConfig:
    """Write a directory with some parts quantized; it appears whole or not at all.

    Args:
        source: the directory that `config` describes. Its other files are hard-linked where the file system can, else
            copied.
        parts: by the part's name in `Family`: how it is quantized (the fingerprint is filled in here), and its tensors.

    Returns:
        The new directory's configuration.

    Raises:
        OutputError: `output` is there already or cannot be written.
    """
    check_output(output)
    family = family_of(config.family)
    try:
        with appearing_whole(output) as partial:
            done = {}
            for part, (how, tensors) in parts.items():
                done[part] = dataclasses.replace(how, fingerprint=fingerprint(tensors))
                header = {"format": "pt", HEADER: json.dumps(dataclasses.asdict(done[part]))}
                save_file(tensors, partial / getattr(family, part), metadata=header)
                (partial / getattr(family, part)).chmod(0o644)  # safetensors gives them to their owner alone
            rewritten = {getattr(family, part) for part in parts}
            for file in set(family.files) - rewritten:
                if (source / file).exists():  # a built-in voice need not be
                    _link_or_copy(source / file, partial / file)
            for name, path in voices_of(source).items():
                if name != BUILTIN:
                    (partial / VOICES).mkdir(exist_ok=True)
                    _link_or_copy(path, partial / VOICES / path.name)
            made = dataclasses.replace(config, quantized=dataclasses.replace(config.quantized, **done))
            (partial / CONFIG_FILE).write_text(made.to_json(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror or error}); nothing was left there") from error
    except SafetensorError as error:  # the library's own for a full disk, among others
        raise OutputError(f"{output} cannot be written ({error}); nothing was left there") from error
    return made


def _link_or_copy(source: Path, target: Path) -> None:
    real = source.resolve()  # a hub's cache holds links
    try:
        os.link(real, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(real, target)
