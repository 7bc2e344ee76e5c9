"""Which attention T3's layers run with."""

from __future__ import annotations

import torch
from vllm import envs
from vllm.config import CacheConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.selector import get_attn_backend


def attention_backend(
    head_dim: int, cache_config: CacheConfig | None, shares_prompt: bool = False
) -> type[AttentionBackend] | None:
    """Ours where vLLM would take FlashAttention; None leaves it to vLLM.

    Args:
        shares_prompt: whether most of a prompt is the same for all sequences of a voice.
    """
    if not current_platform.is_cuda():
        return None
    cache_dtype = None if cache_config is None else cache_config.cache_dtype
    if get_attn_backend(head_dim, torch.get_default_dtype(), cache_dtype).get_name() != "FLASH_ATTN":
        return None
    from chatterbox_vllm.t3.vllm.attention import DecodeAttentionBackend, SharedPromptBackend  # import triton

    # What is read once for several sequences would depend on the batch.
    return SharedPromptBackend if shares_prompt and not envs.VLLM_BATCH_INVARIANT else DecodeAttentionBackend
