"""NF4 and INT8 linear layers inside vLLM, quantized layer by layer while a model loads.

vLLM itself has no bitsandbytes any more. Its online quantization machinery (0.32: `uses_meta_device` and
`initialize_online_processing`) is what makes layer by layer possible: a weight stays on `meta` until the last of its
shards has arrived, then it is put on the device, quantized here and dropped. At no time is more than one layer there in
full. A checkpoint that is quantized already has its tensors copied in as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.model_loader.reload.layerwise import initialize_online_processing
from vllm.model_executor.parameter import ModelWeightParameter

from chatterbox_vllm.quantization.bnb import Scheme, Tensors, require_bitsandbytes, scheme
from chatterbox_vllm.quantization.t3 import BNB_CONFIG


class BnbLinearMethod(LinearMethodBase):
    """Linear layers of one scheme.

    Attributes:
        uses_meta_device: where vLLM looks for layers that are quantized while they load.
    """

    def __init__(self, scheme: Scheme, stored: bool):
        self.scheme = scheme
        self.uses_meta_device = not stored

    def create_weights(
        self,
        layer: nn.Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        shape = (sum(output_partition_sizes), input_size_per_partition)
        layer.quantized_shape = shape
        layout = self.scheme.layout(*shape)
        layer.quantized_tensors = tuple(layout)
        if not self.uses_meta_device:
            _register(layer, {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in layout.items()})
            return
        # In float32 whatever the engine computes in, so that every dtype gets the same quantized weights.
        weight = ModelWeightParameter(
            data=torch.empty(shape, dtype=torch.float32, device="meta"),
            input_dim=1,
            output_dim=0,
            weight_loader=extra_weight_attrs["weight_loader"],
        )
        layer.register_parameter("weight", weight)
        layer.waits_for_weight = True
        initialize_online_processing(layer)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Called when a layer is complete, and again by vLLM for all layers at the end."""
        if not getattr(layer, "waits_for_weight", False):
            return
        weight = layer.weight.data
        del layer.weight
        _register(layer, self.scheme.quantize(weight))
        layer.waits_for_weight = False

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        tensors = {name: getattr(layer, name) for name in layer.quantized_tensors}
        out = self.scheme.linear(x, tensors, layer.quantized_shape[0])
        return out if bias is None else out + bias


def _register(layer: nn.Module, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


@register_quantization_config(BNB_CONFIG)
class BnbConfig(QuantizationConfig):
    """Every linear layer in one scheme; embeddings and the head, which are none, stay as they are."""

    def __init__(self, method: str, double_quant: bool, stored: bool):
        super().__init__()
        require_bitsandbytes()
        self.scheme = scheme(method, double_quant)
        self.stored = stored

    @classmethod
    def get_name(cls) -> str:
        return BNB_CONFIG

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 75  # the library's

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BnbConfig:
        return cls(config["method"], config["double_quant"], config["stored"])

    def get_quant_method(self, layer: nn.Module, prefix: str) -> BnbLinearMethod | None:
        return BnbLinearMethod(self.scheme, self.stored) if isinstance(layer, LinearBase) else None
