"""A matrix in 4 or 8 bits: how it is stored, made from floats and turned into them again.

Both forms are weight-only: what is multiplied is the matrix dequantized to the activations' dtype, so any compute dtype
serves, and a result differs from the float layer's by the rounding of the weights alone.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from chatterbox_vllm.errors import CheckpointError, ConfigError

NF4_BLOCK = 64  # values that share a scale
_SCALE_BLOCK = 256  # scales that share a scale, under double quantization
_INT8_MOST = 127


def require_bitsandbytes() -> ModuleType:
    """`bitsandbytes.functional`.

    Raises:
        ConfigError: the package is not installed or cannot be loaded here.
    """
    # It reports optional kernels that it does not find, which none of this needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional as functional
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"bnb-4bit needs the package bitsandbytes ({error}); run: pip install bitsandbytes"
        ) from error
    module: ModuleType = functional
    return module


@dataclass(frozen=True, eq=False)
class QuantizedMatrix(ABC):
    """A matrix of `shape` in quantized form; the other fields are its tensors, all on one device."""

    shape: tuple[int, int]

    form: ClassVar[str]  # its name in files

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix [rows, columns] in a floating-point dtype, newly made."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of its state, by name; `from_tensors` makes an equal matrix of it, bit for bit."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    @classmethod
    def from_tensors(cls, shape: tuple[int, int], tensors: dict[str, torch.Tensor]) -> Self:
        """From what `tensors` gave, for a matrix of that shape.

        Raises:
            CheckpointError: a tensor is missing or unknown, or has another dtype or shape than this matrix needs.
        """
        expected = cls.layout(shape, cls._variant(tensors))
        if tensors.keys() != expected.keys():
            raise CheckpointError(
                f"a {cls.form} matrix is stored as {', '.join(expected)}, found {', '.join(sorted(tensors)) or 'none'}"
            )
        for name, (dtype, size) in expected.items():
            found = tensors[name]
            if found.dtype != dtype or tuple(found.shape) != size:
                raise CheckpointError(
                    f"{name} of a {cls.form} matrix of shape {shape} must be {dtype} {size}, "
                    f"found {found.dtype} {tuple(found.shape)}"
                )
        return cls(shape=shape, **tensors)

    @classmethod
    def _variant(cls, tensors: dict[str, torch.Tensor]) -> bool:
        return True

    @classmethod
    @abstractmethod
    def layout(
        cls, shape: tuple[int, int], double_quant: bool = True
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of each tensor that a matrix of `shape` is stored in."""

    def to(self, device: torch.device | str) -> Self:
        """The same matrix on another device."""
        return type(self)(self.shape, **{name: value.to(device) for name, value in self.tensors().items()})

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.tensors().values())).device


@dataclass(frozen=True, eq=False)
class Int8Matrix(QuantizedMatrix):
    """codes * scale, a scale for each row.

    Scales are bfloat16: they have float32's range, and codes are rounded to the scale as it is stored, so its own
    rounding costs at most 0.4 % of a step.

    Attributes:
        codes: [rows, columns] int8, -127..127.
        scale: [rows, 1] bfloat16.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    form: ClassVar[str] = "int8"

    @classmethod
    def quantized(cls, matrix: torch.Tensor) -> Self:
        """From floats [rows, columns]: rows scaled by their largest magnitude, to nearest."""
        values = matrix.float()
        exact = (values.abs().amax(dim=1, keepdim=True) / _INT8_MOST).clamp_min(torch.finfo(torch.float32).tiny)
        scale = exact.to(torch.bfloat16)
        # Rounded down, the largest value would not fit.
        low = scale.float() < exact
        scale = torch.where(low, torch.nextafter(scale, torch.full_like(scale, math.inf)), scale)
        codes = (values / scale.float()).round_().clamp_(-_INT8_MOST, _INT8_MOST).to(torch.int8)
        return cls(tuple(matrix.shape), codes, scale)  # type: ignore[arg-type]

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        return self.codes * self.scale.to(dtype)

    @classmethod
    def layout(
        cls, shape: tuple[int, int], double_quant: bool = True
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"codes": (torch.int8, shape), "scale": (torch.bfloat16, (shape[0], 1))}


@dataclass(frozen=True, eq=False)
class Nf4Matrix(QuantizedMatrix):
    """bitsandbytes' NF4 (Dettmers et al. 2023, arXiv 2305.14314): two values a byte, blocks of 64 along the rows.

    Attributes:
        packed: [values / 2, 1] uint8.
        scale: the blocks' largest magnitudes [blocks]: float32, or uint8 under double quantization.
        scale_scale: [blocks / 256] float32 and
        scale_offset: [] float32, of double quantization only.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    scale_scale: torch.Tensor | None = None
    scale_offset: torch.Tensor | None = None

    form: ClassVar[str] = "nf4"

    @classmethod
    def quantized(cls, matrix: torch.Tensor, double_quant: bool = True) -> Self:
        """From floats [rows, columns], to nearest.

        Raises:
            ConfigError: bitsandbytes is not installed.
        """
        packed, state = require_bitsandbytes().quantize_4bit(
            matrix.float().contiguous(), blocksize=NF4_BLOCK, compress_statistics=double_quant, quant_type="nf4"
        )
        shape: tuple[int, int] = tuple(matrix.shape)  # type: ignore[assignment]
        if not double_quant:
            return cls(shape, packed, state.absmax)
        return cls(shape, packed, state.absmax, state.state2.absmax, state.offset)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        return _dequantized_nf4(self, dtype)

    @classmethod
    def _variant(cls, tensors: dict[str, torch.Tensor]) -> bool:
        return "scale_offset" in tensors

    @classmethod
    def layout(
        cls, shape: tuple[int, int], double_quant: bool = True
    ) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        values = shape[0] * shape[1]
        blocks = -(-values // NF4_BLOCK)
        packed = {"packed": (torch.uint8, (-(-values // 2), 1))}
        if not double_quant:
            return {**packed, "scale": (torch.float32, (blocks,))}
        return {
            **packed,
            "scale": (torch.uint8, (blocks,)),
            "scale_scale": (torch.float32, (-(-blocks // _SCALE_BLOCK),)),
            "scale_offset": (torch.float32, ()),
        }


_tables: dict[tuple[str, torch.device], Any] = {}


def _scale_table(functional: Any, device: torch.device) -> torch.Tensor:
    """The 256 values that a double-quantized scale may have: the same for all matrices, so kept once a device."""
    key = ("scale", device)
    if key not in _tables:
        _tables[key] = functional.create_dynamic_map().to(device)
    return _tables[key]


def _dequantized_nf4(matrix: Nf4Matrix, dtype: torch.dtype) -> torch.Tensor:
    functional = require_bitsandbytes()
    second = None
    if matrix.scale_scale is not None:
        second = functional.QuantState(
            absmax=matrix.scale_scale,
            code=_scale_table(functional, matrix.device),
            blocksize=_SCALE_BLOCK,
            dtype=torch.float32,
        )
    state = functional.QuantState(
        absmax=matrix.scale,
        shape=torch.Size(matrix.shape),
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=matrix.scale_offset,
        state2=second,
    )
    values: torch.Tensor = functional.dequantize_4bit(matrix.packed, state)
    return values


FORMS: dict[str, type[QuantizedMatrix]] = {"bnb-4bit": Nf4Matrix, "bnb-8bit": Int8Matrix}


def quantized(matrix: torch.Tensor, method: str, double_quant: bool = True) -> QuantizedMatrix:
    """A matrix of floats [rows, columns] by "bnb-4bit" or "bnb-8bit", on its device.

    Raises:
        ConfigError: another method, or bitsandbytes is needed and not installed.
    """
    if method == "bnb-4bit":
        return Nf4Matrix.quantized(matrix, double_quant)
    if method == "bnb-8bit":
        return Int8Matrix.quantized(matrix)
    raise ConfigError(f"a module's weights can be quantized by {' or '.join(FORMS)}, not {method!r}")


def stored_bytes(shape: tuple[int, int], method: str, double_quant: bool = True) -> int:
    """What a matrix of `shape` takes by `method`, in bytes: theory, to the byte."""
    layout = FORMS[method].layout(shape, double_quant)
    return sum(math.prod(size) * dtype.itemsize for dtype, size in layout.values())
