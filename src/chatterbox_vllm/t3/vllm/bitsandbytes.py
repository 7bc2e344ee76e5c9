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

from chatterbox_vllm.quantization.bnb import check_product, constants, linear
from chatterbox_vllm.quantization.storage import Scheme, Tensors, require_bitsandbytes, scheme_of
from chatterbox_vllm.t3.quantization.methods import BNB_CONFIG


class BnbLinearMethod(LinearMethodBase):
    """The method of one linear layer; its tensors are the layer's parameters.

    Attributes:
        scheme: how the weight is stored.
        shape: of the weight, [out, in].
        uses_meta_device: the weight is quantized while it loads; vLLM looks for this name.
    """

    def __init__(self, scheme: Scheme, stored: bool):
        self.scheme = scheme
        self.shape = (0, 0)
        self.uses_meta_device = not stored
        self._stored: tuple[str, ...] = ()  # the layer's tensors that hold the weight
        self._names: tuple[str, ...] = ()  # and all that the product takes
        self._waiting = False

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
        self.shape = (sum(output_partition_sizes), input_size_per_partition)
        check_product(self.scheme, input_size_per_partition)
        layout = self.scheme.layout(self.shape)
        self._stored = tuple(layout)
        if not self.uses_meta_device:
            _register(layer, {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in layout.items()})
            return
        # In float32 whatever the engine computes in, so that every dtype gets the same quantized weights.
        weight = ModelWeightParameter(
            data=torch.empty(self.shape, dtype=torch.float32, device="meta"),
            input_dim=1,
            output_dim=0,
            weight_loader=extra_weight_attrs["weight_loader"],
        )
        layer.register_parameter("weight", weight)
        self._waiting = True
        initialize_online_processing(layer)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Called when a layer is complete, and again by vLLM for all layers at the end."""
        if self._waiting:
            self._waiting = False
            weight = layer.get_parameter("weight").data
            del layer.weight
            _register(layer, self.scheme.quantize(weight))
        beside = constants(self.scheme, layer.get_parameter(self._stored[0]).device)
        for name, tensor in beside.items():
            layer.register_buffer(name, tensor, persistent=False)
        self._names = (*self._stored, *beside)

    def in_force(self, layer: nn.Module) -> tuple[str | None, str | None]:
        """The method and the kernel that `layer` runs with; (None, None) without the weight's quantized tensors."""
        held = {name: (tuple(value.shape), value.dtype) for name, value in layer.named_parameters(recurse=False)}
        whole = held.items() >= self.scheme.layout(self.shape).items()
        return (self.scheme.method, "bitsandbytes") if whole else (None, None)

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        tensors = {name: getattr(layer, name) for name in self._names}
        out = linear(self.scheme, x, tensors, self.shape[0])
        return out if bias is None else out + bias


def _register(layer: nn.Module, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        parameter = nn.Parameter(tensor, requires_grad=False)
        parameter.weight_loader = _copy_stored
        layer.register_parameter(name, parameter)


def _copy_stored(parameter: nn.Parameter, stored: torch.Tensor, shard: object = None) -> None:
    """Take a quantized tensor in as it is; vLLM's own loaders would cut and convert it."""
    if shard is not None or (stored.shape, stored.dtype) != (parameter.shape, parameter.dtype):
        raise ValueError(f"a quantized tensor is {stored.dtype} {tuple(stored.shape)}, shard {shard}")
    parameter.data.copy_(stored)


@register_quantization_config(BNB_CONFIG)
class BnbConfig(QuantizationConfig):
    """Every linear layer in one scheme; embeddings and the head, which are none, stay as they are."""

    def __init__(self, method: str, double_quant: bool, stored: bool):
        super().__init__()
        require_bitsandbytes()
        self.scheme = scheme_of(method, double_quant)
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
