"""T3's attention on CUDA: vLLM's FlashAttention for prompts, and our own kernel for sequences that decode."""

# mypy: disable-error-code="misc"

from __future__ import annotations

import copy
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Decodes:
    """The sequences of a step with prompts that have one new token. The tensors stay where they are, for CUDA graphs.

    Attributes:
        tokens: [sequences] int32, the number in the step of a sequence's last new token.
        lengths: [sequences] int32, places of one with one new token; 0 for others.
        prompt_lengths: [sequences] int32, places of one with more new tokens; 0 for one with one.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    prompt_lengths: torch.Tensor

    @classmethod
    def empty(cls, sequences: int, device: torch.device) -> Decodes:
        """For steps of up to so many sequences."""
        return cls(*torch.zeros(3, sequences, dtype=torch.int32, device=device))

    def of(self, begins: torch.Tensor, lengths: torch.Tensor) -> Decodes:
        """Those of a step, in the same memory.

        Args:
            begins: [N + 1] int32, where each sequence's new tokens begin and the last one's end.
            lengths: [N] int32, places of each.
        """
        own = Decodes(*(kept[: len(lengths)] for kept in (self.tokens, self.lengths, self.prompt_lengths)))
        alone = begins.diff() == 1
        torch.sub(begins[1:], 1, out=own.tokens)
        torch.mul(lengths, alone, out=own.lengths)
        torch.sub(lengths, own.lengths, out=own.prompt_lengths)
        return own


class DecodeAttention(FlashAttentionImpl):
    """Sequences with one new token go to `decode_attention`, those with prompts to FlashAttention.

    So a sequence's last bits do not depend on whether another's prompt is in the step, which batch-invariant mode asks
    for. FlashAttention also takes long for many sequences with one new token, since each has a tile of 64 queries for
    itself: 111 us a layer for 64 of them and a prompt, on an H200.
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
        if attn_metadata is None:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        rows, lengths, tokens, shared = attn_metadata.num_actual_tokens, attn_metadata.seq_lens, None, None
        if attn_metadata.max_query_len > 1:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
            decodes: Decodes = attn_metadata.decodes
            lengths, tokens = decodes.lengths, decodes.tokens
        elif rows >= _FEWEST_ROWS:
            shared = getattr(attn_metadata, "shared", None)
        decode_attention(
            query[:rows],
            kv_cache,
            attn_metadata.block_table,
            lengths,
            output[:rows],
            self.scale,
            shared,
            tokens=tokens,
            invariant=self.batch_invariant_enabled,
        )
        return output


class DecodeMetadataBuilder(FlashAttentionMetadataBuilder):
    """Describes to FlashAttention only what it computes: of a step with prompts these, of others nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # In a graph vLLM would let FlashAttention split each row's attention into up to 32 parts, and reserve room for
        # them. There it computes prompts alone, whose rows are enough to fill the card.
        self.max_num_splits = 1
        self._decodes = Decodes.empty(self.vllm_config.scheduler_config.max_num_seqs, self.device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        if common_attn_metadata.max_query_len == 1:
            return super().build(common_prefix_len, common_attn_metadata, fast_build=True)
        decodes = self._decodes.of(common_attn_metadata.query_start_loc, common_attn_metadata.seq_lens)
        with_prompts = copy.copy(common_attn_metadata)
        with_prompts.seq_lens = decodes.prompt_lengths
        metadata = super().build(common_prefix_len, with_prompts, fast_build)
        metadata.decodes = decodes
        return metadata


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
