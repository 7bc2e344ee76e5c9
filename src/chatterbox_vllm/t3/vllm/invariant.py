"""Matrix products that do not depend on the batch, for vLLM's batch-invariant mode."""

from __future__ import annotations

import torch
from torch import nn
from vllm import envs
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod


def fix_products(model: nn.Module) -> None:
    """Let vLLM's own kernel compute all of a model's products in batch-invariant mode; nothing changes in others.

    vLLM itself leaves them to cuBLAS on Hopper and later cards, and forbids it to split sums. But on an H200 a prompt
    of some length alone gave other tokens than among others.
    """
    if not envs.VLLM_BATCH_INVARIANT:
        return
    from vllm.model_executor.determinism.batch_invariant import linear_batch_invariant

    def apply(layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear_batch_invariant(x, layer.weight, bias)

    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)):
            method.apply = apply
