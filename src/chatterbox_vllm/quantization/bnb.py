"""NF4 and INT8 storage of a linear layer's weight, and the product with it, on bitsandbytes' operators.

A scheme turns a float32 weight [out, in] into a few named tensors, says beforehand what they will be, and multiplies
with them. The operators are called directly: they carry fake implementations, so that torch.compile and CUDA graphs
take them without a break, which the library's autograd wrappers do not promise.

NF4: Dettmers et al., QLoRA, arXiv 2305.14314. INT8: the integer product of Dettmers et al., LLM.int8(), arXiv
2208.07339. There, input channels with outliers are multiplied apart in 16 bits, in shapes that depend on the data,
which no CUDA graph can hold. Here the whole input is given in two terms of 8 bits instead: the second carries what
rounding to the first left over, so outliers cost nothing, and where a step is bound by reading weights, it is free.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from chatterbox_vllm.errors import ConfigError

Tensors = dict[str, torch.Tensor]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # a tensor's name to its shape and dtype

_NF4_BLOCK = 64  # weights that share one scale
_SCALE_BLOCK = 256  # scales that share one, under double quantization
_INT8_LARGEST = 127.0
_REST_STEPS = 2 * _INT8_LARGEST  # of what rounding to 8 bits leaves over, half a step either way


@functools.cache
def require_bitsandbytes() -> Any:
    """The library, imported at its first use.

    Raises:
        ConfigError: it is not installed or cannot be loaded.
    """
    log = logging.getLogger("bitsandbytes")
    level = log.level
    # It warns when another package, which would download a kernel, is absent.
    log.setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"bnb-4bit and bnb-8bit need the library bitsandbytes, which cannot be imported ({error}): "
            "pip install bitsandbytes"
        ) from error
    finally:
        log.setLevel(level)
    return bitsandbytes.functional


class Scheme(Protocol):
    """How one weight is stored and used."""

    def layout(self, out_features: int, in_features: int) -> Layout:
        """What `quantize` makes of a weight [out, in]."""
        ...

    def quantize(self, weight: torch.Tensor) -> Tensors:
        """weight [out, in], any float dtype, on the device that the result shall be on."""
        ...

    def dequantize(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        """The weight [out, in] that the tensors stand for, float32."""
        ...

    def linear(self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor], out_features: int) -> torch.Tensor:
        """x [N, in] float -> [N, out] in x's dtype."""
        ...


@dataclass(frozen=True)
class NF4:
    """4 bits a weight, blocks of 64; 0.516 bytes a weight under double quantization, 0.5625 without."""

    double_quant: bool = True

    def layout(self, out_features: int, in_features: int) -> Layout:
        _check_width(in_features, _NF4_BLOCK)
        count = out_features * in_features
        blocks = count // _NF4_BLOCK
        packed = {"weight": ((count // 2, 1), torch.uint8)}
        if not self.double_quant:
            return packed | {"scales": ((blocks,), torch.float32)}
        return packed | {
            "scales": ((-(-blocks // _SCALE_BLOCK),), torch.float32),
            "scales_8bit": ((blocks,), torch.uint8),
            "scales_code": ((256,), torch.float32),
            "scales_offset": ((), torch.float32),
        }

    def quantize(self, weight: torch.Tensor) -> Tensors:
        _check_width(weight.shape[1], _NF4_BLOCK)
        functional = require_bitsandbytes()
        packed, state = functional.quantize_4bit(
            weight.float().contiguous(), blocksize=_NF4_BLOCK, compress_statistics=self.double_quant, quant_type="nf4"
        )
        if not self.double_quant:
            return {"weight": packed, "scales": state.absmax}
        return {
            "weight": packed,
            "scales": state.state2.absmax,
            "scales_8bit": state.absmax,
            # One table for all layers inside the library; a copy, so that every layer stands alone.
            "scales_code": state.state2.code.clone(),
            "scales_offset": state.offset,
        }

    def dequantize(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        scales = tensors["scales"]
        if self.double_quant:
            eight_bit = tensors["scales_8bit"]
            coarse = scales.repeat_interleave(_SCALE_BLOCK)[: eight_bit.numel()]
            scales = tensors["scales_code"][eight_bit.long()] * coarse + tensors["scales_offset"]
        require_bitsandbytes()
        return torch.ops.bitsandbytes.dequantize_4bit(
            tensors["weight"], scales, _NF4_BLOCK, "nf4", list(shape), torch.float32
        )

    def linear(self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor], out_features: int) -> torch.Tensor:
        return torch.ops.bitsandbytes.gemm_4bit(
            x,
            tensors["weight"],
            [out_features, x.shape[-1]],
            tensors["scales"],
            _NF4_BLOCK,
            "nf4",
            None,
            tensors.get("scales_8bit"),
            tensors.get("scales_code"),
            tensors.get("scales_offset"),
        )


@dataclass(frozen=True)
class Int8:
    """8 bits a weight, one scale an output row; rows of x are given in two such terms for the integer product."""

    def layout(self, out_features: int, in_features: int) -> Layout:
        return {
            "weight": ((out_features, in_features), torch.int8),
            "row_scales": ((out_features,), torch.float32),
        }

    def quantize(self, weight: torch.Tensor) -> Tensors:
        require_bitsandbytes()
        quantized, scales = _quantize_rows(weight)
        return {"weight": quantized, "row_scales": scales.squeeze(1)}

    def dequantize(self, tensors: Mapping[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
        return tensors["weight"].float() * tensors["row_scales"].unsqueeze(1)

    def linear(self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor], out_features: int) -> torch.Tensor:
        # The library's own row quantizer takes float16 alone on CUDA and its product leaves in float16. Both are a few
        # elementwise steps, so they are done here in float32: bfloat16 keeps its range, and torch.compile fuses them.
        rows, scales = _quantize_rows(x)
        rest = torch.round((x.float() / scales - rows) * _REST_STEPS).to(torch.int8)
        product = torch.ops.bitsandbytes.int8_linear_matmul(torch.cat([rows, rest]), tensors["weight"])
        first, second = product.float().chunk(2)
        return ((first + second / _REST_STEPS) * (scales * tensors["row_scales"])).to(x.dtype)


def _quantize_rows(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, K] -> int8 [N, K] and float32 scales [N, 1]; a row of zeros stays one."""
    values = values.float()
    scales = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / _INT8_LARGEST
    return torch.round(values / scales).to(torch.int8), scales


def _check_width(in_features: int, block: int) -> None:
    if in_features % block:
        raise ConfigError(f"bnb-4bit needs layers whose input is a multiple of {block} wide, not {in_features}")


SCHEMES: dict[str, type[NF4] | type[Int8]] = {"bnb-4bit": NF4, "bnb-8bit": Int8}


def scheme(method: str, double_quant: bool = True) -> NF4 | Int8:
    """The scheme of a method's name.

    Args:
        double_quant: quantize NF4's scales too; means nothing to INT8.
    """
    return NF4(double_quant) if SCHEMES[method] is NF4 else Int8()
