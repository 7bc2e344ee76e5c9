"""Quantized checkpoints on disk: a directory like a published one, in which some parts' files are quantized.

`config.json` says under "quantized" which part is in which form, and the header of the part's file says the same, with
a fingerprint of its tensors: a file of another run, or a plain one, in its place is refused, and so is a file whose
tensors are others than that. Which tensors a part has belongs to the part (`t3_file.py`); this module writes, describes
and checks.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from chatterbox_vllm.checkpoint.config import CONFIG_FILE, QuantizedPart
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import CheckpointError
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.fingerprint import DTYPE_NAMES, file_fingerprint
from chatterbox_vllm.quantization.storage import NF4, Layout, Scheme, scheme_of

Progress = Callable[[int, int], None]  # layers done, of how many

HEADER = "chatterbox_quantized"
_AGAIN = "make the directory again with `chatterbox-vllm quantize`"


def stored_quantization(weights: Weights) -> QuantizedPart | None:
    """How a file is quantized by its own header; None for a plain one.

    Raises:
        CheckpointError: the header cannot be read.
    """
    if HEADER not in weights.metadata:
        return None
    try:
        return QuantizedPart(**json.loads(weights.metadata[HEADER]))
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
