"""How a matrix is stored in 4 or 8 bits: its tensors, made from floats and turned into floats again.

T3 (`bnb.py`), S3Gen and the voice encoder (`modules.py`) hold and file their matrices in these forms; what they do with
them, a product with the stored numbers or one with the matrix dequantized, is theirs.
"""

from __future__ import annotations

import functools
import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from chatterbox_vllm.errors import ConfigError

Tensors = dict[str, torch.Tensor]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # a tensor's name to its shape and dtype

BITSANDBYTES = "bitsandbytes>=0.50,<0.51"  # what pyproject.toml's extra `bnb` takes

NF4_BLOCK = 64  # values that share a scale
_SCALE_BLOCK = 256  # scales that share a scale, under double quantization
INT8_LARGEST = 127


@functools.cache
def require_bitsandbytes() -> Any:
    """`bitsandbytes.functional`, imported at its first use; importing it registers the operators, too.

    Raises:
        ConfigError: the library is not installed or cannot be loaded here.
    """
    log = logging.getLogger("bitsandbytes")
    level = log.level
    # It warns when another package, which would download a kernel, is absent.
    log.setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"bnb-4bit, and bnb-8bit for T3, need the library bitsandbytes, which cannot be imported ({error}): "
            f'pip install "{BITSANDBYTES}"'
        ) from error
    finally:
        log.setLevel(level)
    return bitsandbytes.functional


class Scheme(ABC):
    """How matrices are stored, whatever they are used for.

    Attributes:
        method: its name, as in `QuantizationConfig`.
    """

    method: ClassVar[str]

    @abstractmethod
    def layout(self, shape: tuple[int, int]) -> Layout:
        """What `quantize` makes of a matrix [rows, columns]."""

    @abstractmethod
    def quantize(self, matrix: torch.Tensor) -> Tensors:
        """From floats [rows, columns] of any dtype, to nearest, on their device.

        Raises:
            ConfigError: NF4 without bitsandbytes.
        """

    @abstractmethod
    def dequantize(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """The matrix that the tensors stand for, in a floating-point dtype, newly made."""

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """What a matrix of `shape` takes: theory, to the byte."""
        return sum(math.prod(size) * dtype.itemsize for size, dtype in self.layout(shape).values())


@dataclass(frozen=True)
class NF4(Scheme):
    """bitsandbytes' NF4 (Dettmers et al. 2023, arXiv 2305.14314): two values a byte, blocks of 64 along the rows.

    0.516 bytes a value under double quantization, 0.5625 without. `scales` are the blocks' largest magnitudes; under
    double quantization these are `scale_table[scales_8bit] * scales + scales_offset`, with a scale for each 256.
    """

    double_quant: bool = True

    method: ClassVar[str] = "bnb-4bit"

    def layout(self, shape: tuple[int, int]) -> Layout:
        values = shape[0] * shape[1]
        blocks = -(-values // NF4_BLOCK)
        packed: Layout = {"packed": ((-(-values // 2), 1), torch.uint8)}
        if not self.double_quant:
            return packed | {"scales": ((blocks,), torch.float32)}
        return packed | {
            "scales": ((-(-blocks // _SCALE_BLOCK),), torch.float32),
            "scales_8bit": ((blocks,), torch.uint8),
            "scales_offset": ((), torch.float32),
        }

    def quantize(self, matrix: torch.Tensor) -> Tensors:
        packed, state = require_bitsandbytes().quantize_4bit(
            matrix.float().contiguous(), blocksize=NF4_BLOCK, compress_statistics=self.double_quant, quant_type="nf4"
        )
        if not self.double_quant:
            return {"packed": packed, "scales": state.absmax}
        return {
            "packed": packed,
            "scales": state.state2.absmax,
            "scales_8bit": state.absmax,
            "scales_offset": state.offset,
        }

    def dequantize(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        require_bitsandbytes()
        # The operators themselves: the library's wrappers look up and convert more at each call.
        operators, scales = torch.ops.bitsandbytes, tensors["scales"]
        if self.double_quant:
            table = scale_table(scales.device)
            scales = operators.dequantize_blockwise(tensors["scales_8bit"], scales, table, _SCALE_BLOCK, torch.float32)
            scales = scales + tensors["scales_offset"]
        matrix: torch.Tensor = operators.dequantize_4bit(tensors["packed"], scales, NF4_BLOCK, "nf4", shape, dtype)
        return matrix


@dataclass(frozen=True)
class Int8(Scheme):
    """codes * row_scales, codes in -127..127: 8 bits a value and 16 a row.

    Scales are bfloat16: they have float32's range, and codes are rounded to the scale as it is stored, so its own
    rounding costs at most 0.8 % of a step.
    """

    method: ClassVar[str] = "bnb-8bit"

    def layout(self, shape: tuple[int, int]) -> Layout:
        return {"codes": (shape, torch.int8), "row_scales": ((shape[0],), torch.bfloat16)}

    def quantize(self, matrix: torch.Tensor) -> Tensors:
        values = matrix.float()
        exact = (values.abs().amax(dim=1, keepdim=True) / INT8_LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        scales = exact.to(torch.bfloat16)
        # Rounded down, the largest value would not fit.
        low = scales.float() < exact
        scales = torch.where(low, torch.nextafter(scales, torch.full_like(scales, math.inf)), scales)
        codes = (values / scales.float()).round_().clamp_(-INT8_LARGEST, INT8_LARGEST).to(torch.int8)
        return {"codes": codes, "row_scales": scales.squeeze(1)}

    def dequantize(self, tensors: Tensors, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        return tensors["codes"] * tensors["row_scales"].to(dtype).unsqueeze(1)


SCHEMES: dict[str, type[NF4] | type[Int8]] = {scheme.method: scheme for scheme in (NF4, Int8)}


def scheme_of(method: str, double_quant: bool = True) -> Scheme:
    """The scheme of a method's name.

    Args:
        double_quant: quantize NF4's scales, too; means nothing to INT8.

    Raises:
        ConfigError: another method.
    """
    if method not in SCHEMES:
        raise ConfigError(f"matrices are stored by {' or '.join(SCHEMES)}, not by {method!r}")
    return NF4(double_quant) if method == NF4.method else Int8()


@functools.cache
def scale_table(device: torch.device) -> torch.Tensor:
    """The 256 values of NF4's `scales_8bit`, float32: the same for all matrices, so kept once a device."""
    # A plain tensor wherever it is first asked for: vLLM's graphs hold it, too.
    with torch.inference_mode(False):
        table: torch.Tensor = require_bitsandbytes().create_dynamic_map().to(device)
    return table


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix of `shape` in stored form: the tensors that `scheme` makes of it, all on one device."""

    scheme: Scheme
    shape: tuple[int, int]
    tensors: Tensors

    @classmethod
    def of(cls, matrix: torch.Tensor, scheme: Scheme) -> QuantizedMatrix:
        """From floats [rows, columns], on their device."""
        return cls(scheme, (matrix.shape[0], matrix.shape[1]), scheme.quantize(matrix))

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [rows, columns] in a floating-point dtype, newly made."""
        return self.scheme.dequantize(self.tensors, self.shape, dtype)

    def to(self, device: torch.device | str) -> QuantizedMatrix:
        """The same matrix on another device."""
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        return QuantizedMatrix(self.scheme, self.shape, moved)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.tensors.values())).device
