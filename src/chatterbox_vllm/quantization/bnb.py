"""T3's products with weights in NF4 and INT8, on bitsandbytes' operators.

The operators are called directly: they carry fake implementations, so that torch.compile and CUDA graphs take them
without a break, which the library's autograd wrappers do not promise.

INT8 is the integer product of Dettmers et al., LLM.int8(), arXiv 2208.07339. There, input channels with outliers are
multiplied apart in 16 bits, in shapes that depend on the data, which no CUDA graph can hold. Here the whole input is
given in two terms of 8 bits instead: the second carries what rounding to the first left over, so outliers cost nothing,
and where a step is bound by reading weights, it is free.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.storage import INT8_LARGEST, NF4, NF4_BLOCK, Scheme, Tensors, scale_table

_REST_STEPS = 2.0 * INT8_LARGEST  # of what rounding to 8 bits leaves over, half a step either way


def check_product(scheme: Scheme, in_features: int) -> None:
    """Refuse a layer that cannot be multiplied with.

    Raises:
        ConfigError: its rows are not whole blocks of NF4.
    """
    if isinstance(scheme, NF4) and in_features % NF4_BLOCK:
        raise ConfigError(f"T3 in bnb-4bit needs inputs that are a multiple of {NF4_BLOCK} wide, not {in_features}")


def constants(scheme: Scheme, device: torch.device) -> Tensors:
    """What `linear` needs beside a weight's own tensors: the same for all weights, and not stored with them."""
    return {"scale_table": scale_table(device)} if isinstance(scheme, NF4) and scheme.double_quant else {}


def linear(scheme: Scheme, x: torch.Tensor, tensors: Mapping[str, torch.Tensor], out_features: int) -> torch.Tensor:
    """x [N, in] float, times the transposed weight [out, in], is [N, out] in x's dtype.

    Args:
        tensors: the weight's, and `constants`.
    """
    if not isinstance(scheme, NF4):
        return _int8_linear(x, tensors["codes"], tensors["row_scales"])
    out: torch.Tensor = torch.ops.bitsandbytes.gemm_4bit(
        x,
        tensors["packed"],
        [out_features, x.shape[-1]],
        tensors["scales"],
        NF4_BLOCK,
        "nf4",
        None,
        tensors.get("scales_8bit"),
        tensors.get("scale_table"),
        tensors.get("scales_offset"),
    )
    return out


def _int8_linear(x: torch.Tensor, codes: torch.Tensor, row_scales: torch.Tensor) -> torch.Tensor:
    # The library's own row quantizer takes float16 alone on CUDA and its product leaves in float16. Both are a few
    # elementwise steps, so they are done here in float32: bfloat16 keeps its range, and torch.compile fuses them.
    values = x.float()
    scales = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / INT8_LARGEST
    rows = torch.round(values / scales).to(torch.int8)
    rest = torch.round((values / scales - rows) * _REST_STEPS).to(torch.int8)
    product = torch.ops.bitsandbytes.int8_linear_matmul(torch.cat([rows, rest]), codes)
    first, second = product.float().chunk(2)
    return ((first + second / _REST_STEPS) * (scales * row_scales.float())).to(x.dtype)
