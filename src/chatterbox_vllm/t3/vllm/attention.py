"""T3's attention on CUDA: vLLM's FlashAttention, with our own kernel for steps that only decode."""

# mypy: disable-error-code="misc"

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadata,
    FlashAttentionMetadataBuilder,
)

from chatterbox_vllm.t3.decode_kernel import decode_attention
from chatterbox_vllm.t3.shared_kernel import SharedPlaces, find_shared

# Rows that share what they read, at least. 32 take 16 us in place of 22 on an H200; fewer were not measured.
_FEWEST_ROWS = 32


class DecodeAttention(FlashAttentionImpl):
    """Steps in which every sequence has one new token go to `decode_attention`, all others to FlashAttention.

    In vLLM's batch-invariant mode a sequence with one new token goes to `decode_attention` in every step: its last bits
    are not to depend on whether another's prompt is in the step, and FlashAttention drops `causal` where none is.
    """

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: FlashAttentionMetadata | None,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if attn_metadata is None or attn_metadata.max_query_len > 1:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
            if attn_metadata is not None and self.batch_invariant_enabled:
                self._decode_beside_prompts(query, kv_cache, attn_metadata, output)
            return output
        rows, lengths = attn_metadata.num_actual_tokens, attn_metadata.seq_lens
        shared = getattr(attn_metadata, "shared", None) if rows >= _FEWEST_ROWS else None
        decode_attention(
            query[:rows],
            kv_cache,
            attn_metadata.block_table,
            lengths,
            output[:rows],
            self.scale,
            shared,
            invariant=self.batch_invariant_enabled,
        )
        return output

    def _decode_beside_prompts(
        self, query: torch.Tensor, kv_cache: torch.Tensor, attn_metadata: FlashAttentionMetadata, output: torch.Tensor
    ) -> None:
        """Put our kernel's result in the place of FlashAttention's where a sequence has one new token."""
        begins = attn_metadata.query_start_loc
        decodes, last = begins[1:] - begins[:-1] == 1, begins[1:].long() - 1
        own = torch.empty_like(query[last])
        table, lengths = attn_metadata.block_table, attn_metadata.seq_lens
        decode_attention(query[last], kv_cache, table, lengths, own, self.scale, invariant=True)
        output[last] = torch.where(decodes[:, None, None], own, output[last])


class DecodeMetadataBuilder(FlashAttentionMetadataBuilder):
    """Leaves out FlashAttention's own plan of a step that it does not compute."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # FlashAttention is in no graph here, so it need not reserve room for the most splits that a graph may need.
        self.max_num_splits = 0

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        only_decodes = common_attn_metadata.max_query_len == 1
        return super().build(common_prefix_len, common_attn_metadata, fast_build or only_decodes)


class SharedMetadataBuilder(DecodeMetadataBuilder):
    """Notes in addition what the sequences of a decode step begin with alike."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        rows = self.vllm_config.scheduler_config.max_num_seqs
        self.shared = SharedPlaces.empty(rows, self.num_heads_q, self.headdim, self.device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if common_attn_metadata.max_query_len == 1:
            find_shared(metadata.block_table, metadata.seq_lens, self.block_size, self.shared)
            metadata.shared = self.shared
        return metadata


class DecodeAttentionBackend(FlashAttentionBackend):
    """What `T3Attention` asks vLLM for where vLLM itself would take FlashAttention."""

    @staticmethod
    def get_impl_cls() -> type[FlashAttentionImpl]:
        return DecodeAttention

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        return DecodeMetadataBuilder


class SharedPromptBackend(DecodeAttentionBackend):
    """The same where most of a prompt is the voice's, so that the sequences of one voice begin alike."""

    @staticmethod
    def get_builder_cls() -> type[FlashAttentionMetadataBuilder]:
        return SharedMetadataBuilder
