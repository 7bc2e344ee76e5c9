"""The keys of single attention heads, as they lie in vLLM's paged KV cache: [blocks, heads, block size, 2 * D]."""

from __future__ import annotations

import torch
from vllm.model_executor.layers.attention import Attention


def head_keys(layer: Attention, head: int) -> torch.Tensor:
    """On CUDA: a view of the cache, [blocks, block size, D]. A place's key stands before its value."""
    return layer.kv_cache[:, head, :, : layer.head_size]


class PackedKeys:
    """On a CPU: the first half of a block's numbers are its keys, packed as the kernel for that CPU wants them."""

    def __init__(self, layer: Attention, head: int):
        cache = layer.kv_cache
        blocks, _, self.block_size, both = cache.shape
        self._head_dim = layer.head_size
        flat = cache.view(blocks, -1, self.block_size * both)
        self._blocks = flat[:, head, : self.block_size * self._head_dim]
        self._packing = _packing(self.block_size, self._head_dim, cache.dtype, layer.isa)

    def of(self, blocks: torch.Tensor) -> torch.Tensor:
        """The keys of blocks [N, b], float32 [N, b * block size, D]."""
        return self._blocks[blocks][..., self._packing].view(len(blocks), -1, self._head_dim).float()


def _packing(block_size: int, head_dim: int, dtype: torch.dtype, isa: str) -> torch.Tensor:
    """Where in a block of a CPU's cache each number of its keys stands, [block size * D] int64.

    Told by the kernel that fills the cache: it packs keys that hold their places' numbers, and then their channels'.
    """
    from vllm._custom_ops import cpu_attn_reshape_and_cache

    slots = torch.arange(block_size)
    found = []
    # Each number is small enough for half precision to hold it.
    for numbers in (slots[:, None].expand(-1, head_dim), torch.arange(head_dim).expand(block_size, -1)):
        keys = numbers.to(dtype).unsqueeze(1).contiguous()
        packed = torch.zeros(1, 1, block_size, head_dim, dtype=dtype)
        cpu_attn_reshape_and_cache(keys, keys, packed, torch.zeros_like(packed), slots, isa)
        found.append(packed.flatten().long())
    place = torch.empty(block_size * head_dim, dtype=torch.int64)
    place[found[0] * head_dim + found[1]] = torch.arange(len(place))
    return place
