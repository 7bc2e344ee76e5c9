"""What quantization T3's layers run with inside vLLM, asked of the objects that multiply for them."""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQLinearMethod, AutoAWQMarlinLinearMethod
from vllm.model_executor.layers.quantization.online.fp8 import Fp8PtpcOnlineLinearMethod

from chatterbox_vllm.quantization.live import LinearLayer


def engine_layer(layer: nn.Module) -> LinearLayer | None:
    """What a linear layer of vLLM's says about itself; None for other modules, embeddings and the head among them.

    A method that this project does not ask vLLM for is called by the name of its class.
    """
    if not isinstance(layer, LinearBase):
        return None
    weights, method = int(layer.input_size) * int(layer.output_size), layer.quant_method
    if isinstance(method, UnquantizedLinearMethod):
        return LinearLayer(weights)
    if hasattr(method, "in_force"):  # our own
        return LinearLayer(weights, *method.in_force(layer))
    if isinstance(method, AutoAWQMarlinLinearMethod):
        return LinearLayer(weights, "awq", _name(method.kernel))
    if isinstance(method, AutoAWQLinearMethod):
        return LinearLayer(weights, "awq", "AWQ in Triton")
    if isinstance(method, Fp8PtpcOnlineLinearMethod):
        return LinearLayer(weights, "fp8", _name(method.fp8_linear))
    return LinearLayer(weights, type(method).__name__)


def _name(kernel: Any) -> str:
    return type(kernel).__name__
