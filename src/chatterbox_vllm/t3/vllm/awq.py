"""AWQ on CPUs: the AutoAWQ layout, multiplied by torch's own product with 4-bit weights.

vLLM's kernels need AVX-512, and on CPUs with AMX they round the input to 8 bits as well, so that one directory would
speak otherwise on each machine and not at all on many. torch's operator is there on every CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig, AutoAWQLinearMethod
from vllm.model_executor.layers.quantization.utils.quant_utils import is_layer_skipped

from chatterbox_vllm.t3.quantization.awq_layout import unpack
from chatterbox_vllm.t3.quantization.methods import AWQ_CPU_CONFIG, AWQ_GROUP

_MIDDLE = 8  # what the operator's scales stand for: (q - 8) * scale + offset
_INNER_TILES = 1  # a parameter of the GPU's packing, which the CPU's ignores


class CpuAwqMethod(AutoAWQLinearMethod):
    """The method of one linear layer: vLLM's parameters while it loads, the operator's form afterwards."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        # vLLM calls this again for all layers at the end.
        if self.in_force(layer)[0] is not None:
            return
        quantized, zeros = unpack(layer.qweight.data), unpack(layer.qzeros.data)
        # The operator is quick for bfloat16 alone, so it is what every dtype is multiplied in.
        scales = layer.get_parameter("scales").data.to(torch.bfloat16)
        offsets = ((_MIDDLE - zeros) * scales.float()).to(torch.bfloat16)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantized.t().contiguous(), _INNER_TILES)
        for name in ("qweight", "qzeros", "scales"):
            delattr(layer, name)
        layer.packed = nn.Parameter(packed, requires_grad=False)
        layer.scales_and_offsets = nn.Parameter(torch.stack([scales, offsets], dim=-1), requires_grad=False)

    def in_force(self, layer: nn.Module) -> tuple[str | None, str | None]:
        """The method and the kernel that `layer` runs with; (None, None) before its weights are there."""
        return ("awq", "torch 4-bit product") if hasattr(layer, "packed") else (None, None)

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, layer.packed, AWQ_GROUP, layer.scales_and_offsets)
        out = out.to(x.dtype).view(*x.shape[:-1], -1)
        return out if bias is None else out + bias


@register_quantization_config(AWQ_CPU_CONFIG)
class CpuAwqConfig(AutoAWQConfig):
    """vLLM's configuration of an AWQ model, with our method for its linear layers."""

    @classmethod
    def get_name(cls) -> Any:
        return AWQ_CPU_CONFIG

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        if not isinstance(layer, LinearBase):
            return None
        skipped = is_layer_skipped(
            prefix, self.modules_to_not_convert, self.packed_modules_mapping, match_mode="substring"
        )
        return UnquantizedLinearMethod() if skipped else CpuAwqMethod(self)
