"""Quantized checkpoints on disk: a directory like a published one, in which some parts' files are quantized.

`config.json` says under "quantized" which part is in which form, and the header of the part's file says the same, with
a fingerprint of its tensors: a file of another run, or a plain one, in its place is refused, and so is a file whose
tensors are others than that. Which tensors a part has belongs to the part (`t3_file.py`); this module writes, describes
and checks.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from chatterbox_vllm.checkpoint import Weights
from chatterbox_vllm.config import CONFIG_FILE, ModelConfig, QuantizedPart
from chatterbox_vllm.disk_cache import appearing_whole
from chatterbox_vllm.errors import CheckpointError, OutputError
from chatterbox_vllm.families import FAMILIES
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.fingerprint import DTYPE_NAMES, file_fingerprint, fingerprint
from chatterbox_vllm.quantization.storage import NF4, Layout, Scheme, Tensors, scheme_of

Progress = Callable[[int, int], None]  # layers done, of how many

_HEADER = "chatterbox_quantized"
_AGAIN = "make the directory again with `chatterbox-vllm quantize`"


def stored_quantization(weights: Weights) -> QuantizedPart | None:
    """How a file is quantized by its own header; None for a plain one.

    Raises:
        CheckpointError: the header cannot be read.
    """
    if _HEADER not in weights.metadata:
        return None
    try:
        return QuantizedPart(**json.loads(weights.metadata[_HEADER]))
    except (json.JSONDecodeError, TypeError) as error:
        raise CheckpointError(
            f"{weights.path}: its header does not say how it is quantized ({error}); {_AGAIN}"
        ) from error


def scheme_in_force(wanted: QuantizationConfig, part: str, stored: QuantizedPart | None) -> Scheme | None:
    """How the matrices of S3Gen or the voice encoder are held: as their file is quantized, else as asked for."""
    if stored is not None:
        return scheme_of(stored.method, stored.double_quant)
    method = wanted.methods[part]
    return None if method is None else scheme_of(method, wanted.double_quant)


def check_part(weights: Weights, said: QuantizedPart | None, layout: Layout) -> None:
    """Refuse a file that is not what `config.json` says.

    Args:
        said: the part's entry there; None for a plain file.
        layout: keys, shapes and dtypes of the quantized tensors.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    check_origin(weights, said)
    weights.check({key: shape for key, (shape, _) in layout.items()})
    for key, (_, dtype) in layout.items():
        if (stored := weights.storage_type(key)) != DTYPE_NAMES[dtype]:
            raise CheckpointError(f"{weights.path}: tensor {key!r} is {stored}, not {DTYPE_NAMES[dtype]}; {_AGAIN}")


def check_origin(weights: Weights, said: QuantizedPart | None) -> None:
    """Refuse a file whose header says something else than `config.json`.

    Raises:
        CheckpointError: naming both.
    """
    found = stored_quantization(weights)
    if found != said:
        raise CheckpointError(
            f"{weights.path}: {_described(found)}, but {CONFIG_FILE} beside it says {_described(said)}: the two were "
            f"not made together; {_AGAIN}"
        )


def check_contents(weights: Weights, said: QuantizedPart) -> None:
    """Refuse a quantized file whose tensors are not those that its fingerprint was taken of; reads the whole file.

    Raises:
        CheckpointError: naming the file.
    """
    try:
        found = file_fingerprint(weights.path)
    except OSError as error:
        raise CheckpointError(f"{weights.path}: cannot be read to its end ({error}); {_AGAIN}") from error
    if found != said.fingerprint:
        raise CheckpointError(
            f"{weights.path}: its tensors have the fingerprint {found[:12]} and were written with "
            f"{said.fingerprint[:12]}: the file is damaged, or others were put in their place; {_AGAIN}"
        )


def _described(part: QuantizedPart | None) -> str:
    if part is None:
        return "not quantized"
    single = " without double quantization" if part.method == NF4.method and not part.double_quant else ""
    return f"{part.method}{single} with fingerprint {part.fingerprint[:12]}"


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
    family = FAMILIES[config.family]
    try:
        with appearing_whole(output) as partial:
            done = {}
            for part, (how, tensors) in parts.items():
                done[part] = dataclasses.replace(how, fingerprint=fingerprint(tensors))
                header = {"format": "pt", _HEADER: json.dumps(dataclasses.asdict(done[part]))}
                save_file(tensors, partial / getattr(family, part), metadata=header)
                (partial / getattr(family, part)).chmod(0o644)  # safetensors gives them to their owner alone
            rewritten = {getattr(family, part) for part in parts}
            for file in set(family.files) - rewritten:
                if (source / file).exists():  # a built-in voice need not be
                    _link_or_copy(source / file, partial / file)
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
