"""The AutoAWQ GEMM layout: 4-bit weights in groups of 128 inputs, each group with a scale and a zero point.

For a weight [out, in] the file holds `qweight` [in, out/8] and `qzeros` [in/128, out/8], both int32 with eight values
in each, and `scales` [in/128, out] float16. A weight is (q - zero) * scale. vLLM loads it itself; its product is vLLM's
on a GPU, and that of `t3.vllm.awq` on a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.storage import Layout, Tensors
from chatterbox_vllm.t3.quantization.methods import AWQ_GROUP

# Nibble i of an int32 holds column _COLUMNS[i] of its eight.
_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_LARGEST = 15
# vLLM's kernels take outputs by 32, torch's by 16.
_OUT_MULTIPLE = 32
_LEAST_SCALE = 1e-6


def awq_layout(out_features: int, in_features: int) -> Layout:
    """What `quantize_awq` makes of a weight [out, in].

    Raises:
        ConfigError: sizes that the layout cannot hold.
    """
    if in_features % AWQ_GROUP or out_features % _OUT_MULTIPLE:
        raise ConfigError(
            f"awq needs layers whose input is a multiple of {AWQ_GROUP} wide and whose output of {_OUT_MULTIPLE}, not "
            f"{in_features} and {out_features}; take bnb-4bit for this model"
        )
    groups, packed = in_features // AWQ_GROUP, out_features // 8
    return {
        "qweight": ((in_features, packed), torch.int32),
        "qzeros": ((groups, packed), torch.int32),
        "scales": ((groups, out_features), torch.float16),
    }


def quantize_awq(weight: torch.Tensor, shrink: torch.Tensor | float = 1.0) -> Tensors:
    """Round a weight to its groups' grids and pack it.

    Args:
        weight: [out, in] float.
        shrink: of each group's range, [out, in/128] or one for all; 1 is round-to-nearest without clipping.
    """
    quantized, scales, zeros = _round(weight, shrink)
    return {
        "qweight": _pack(quantized.flatten(1).t()),
        "qzeros": _pack(zeros.t()),
        "scales": scales.t().to(torch.float16).contiguous(),
    }


def rounded(weight: torch.Tensor, shrink: torch.Tensor | float = 1.0) -> torch.Tensor:
    """What `quantize_awq` with the same arguments stands for, [out, in] float32."""
    quantized, scales, zeros = _round(weight, shrink)
    return ((quantized - zeros.unsqueeze(-1)) * scales.unsqueeze(-1)).flatten(1)


def dequantize_awq(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weight [out, in] that packed tensors stand for, float32."""
    quantized, zeros = unpack(tensors["qweight"]), unpack(tensors["qzeros"])
    zeros, scales = (part.float().repeat_interleave(AWQ_GROUP, dim=0) for part in (zeros, tensors["scales"]))
    return ((quantized.float() - zeros) * scales).t().contiguous()


def _round(weight: torch.Tensor, shrink: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values 0..15 [out, groups, 128], scales and zeros [out, groups]; all float32."""
    groups = weight.float().unflatten(1, (-1, AWQ_GROUP))
    # The range holds zero, which a zero point of 0..15 can only express then.
    high = groups.amax(-1).clamp(min=0) * shrink
    low = groups.amin(-1).clamp(max=0) * shrink
    # In the precision of the file, so that rounding and search see what will be read back.
    scales = ((high - low) / _LARGEST).clamp(min=_LEAST_SCALE).to(torch.float16).float()
    zeros = torch.round(-low / scales).clamp(0, _LARGEST)
    quantized = torch.round(groups / scales.unsqueeze(-1)).add_(zeros.unsqueeze(-1)).clamp_(0, _LARGEST)
    return quantized, scales, zeros


def _pack(values: torch.Tensor) -> torch.Tensor:
    """[R, C] of 0..15 -> int32 [R, C/8]."""
    columns = values.to(torch.int32).unflatten(1, (-1, 8))[..., list(_COLUMNS)]
    packed = torch.zeros(columns.shape[:2], dtype=torch.int32, device=values.device)
    for nibble in range(8):
        packed |= columns[..., nibble] << (4 * nibble)
    return packed


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """`qweight` or `qzeros`, int32 [R, C/8], to its values 0..15: int32 [R, C]."""
    values = torch.empty(*packed.shape, 8, dtype=torch.int32, device=packed.device)
    for nibble, column in enumerate(_COLUMNS):
        values[..., column] = (packed >> (4 * nibble)) & _LARGEST
    return values.flatten(1)
