"""The size of T3's key-value cache, computed from the model and what is asked of it."""

from __future__ import annotations

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.t3.backbones import backbone_of

_TYPICAL_POSITIONS = 606  # a long sentence and 20 s of speech
# Positions in a block, by device: vLLM deals memory out in blocks and keeps one to itself.
_BLOCK = {"cuda": 16, "cpu": 128}


def kv_bytes_per_position(config: T3Config, element_bytes: int) -> int:
    """Key and value of every layer, head and guidance stream."""
    return 2 * config.num_layers * config.guidance_streams * config.num_heads * config.head_dim * element_bytes


def typical_positions(config: T3Config) -> int:
    """Of a sequence: conditioning, a long sentence, and 20 s of speech."""
    return backbone_of(config).conditioning_rows(config) + _TYPICAL_POSITIONS


def kv_cache_bytes(
    config: T3Config, element_bytes: int, max_model_len: int, max_batch_size: int, device_type: str
) -> int:
    """What `max_batch_size` sequences of `typical_positions`, or one of `max_model_len`, need.

    Where more is needed, vLLM makes requests wait.
    """
    positions = max(max_model_len, max_batch_size * min(typical_positions(config), max_model_len))
    return (positions + (max_batch_size + 1) * _BLOCK[device_type]) * kv_bytes_per_position(config, element_bytes)


def least_kv_cache_bytes(config: T3Config, element_bytes: int, max_model_len: int, device_type: str) -> int:
    """The least that vLLM starts with: one sequence of `max_model_len`."""
    return kv_cache_bytes(config, element_bytes, max_model_len, 1, device_type)
