"""T3 on Llama as a vLLM model whose sequences carry every guidance stream.

A token's hidden state is [S, H]: S = 2 streams (conditional, unconditional) of H channels. Linear layers see the
streams as rows, [N*S, H]; attention sees one layer of S times the heads, so vLLM's paged KV cache, chunked prefill,
preemption, batching and CUDA graphs work on both streams at once and the streams cannot drift apart.

Positions are shifted so that every prompt's last row (the second start-of-speech) stands at the same place,
`sos_position`: RoPE is relative and does not mind, and a speech token's learned position is its distance from there.
vLLM's M-RoPE hook carries the shift.

The layer attributes are not vLLM's Llama because of the stream reshapes around attention; the layers inside are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsQuant
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors

from chatterbox_vllm.t3.vllm.backend import attention_backend
from chatterbox_vllm.t3.vllm.config import LlamaFields
from chatterbox_vllm.t3.vllm.lifetime import set_aside


class T3Attention(nn.Module):
    """Self-attention of all streams: `streams * heads` heads of one vLLM attention layer."""

    def __init__(
        self,
        fields: LlamaFields,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ):
        super().__init__()
        self.head_dim, self.stream_width = fields.head_dim, fields.heads * fields.head_dim
        self.all_width = fields.streams * self.stream_width
        self.qkv_proj = QKVParallelLinear(
            fields.width,
            fields.head_dim,
            fields.heads,
            fields.heads,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            self.stream_width, fields.width, bias=False, quant_config=quant_config, prefix=f"{prefix}.o_proj"
        )
        self.rotary_emb = get_rope(
            fields.head_dim, max_position=fields.max_position, rope_parameters=fields.rope_parameters
        )
        heads = fields.streams * fields.heads
        self.attn = Attention(
            heads,
            fields.head_dim,
            fields.head_dim**-0.5,
            num_kv_heads=heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
            attn_backend=attention_backend(fields.head_dim, cache_config),
        )

    def forward(
        self, positions: torch.Tensor, x: torch.Tensor, heads: Sequence[int], queries: list[torch.Tensor]
    ) -> torch.Tensor:
        """positions [N], x [N*S, H] with a token's streams in adjacent rows -> [N*S, H].

        The queries [N, D] of these heads of the first stream, the conditional one, are added to `queries`.
        """
        qkv, _ = self.qkv_proj(x)
        q, k, v = (part.reshape(-1, self.all_width) for part in qkv.split(self.stream_width, dim=-1))
        q, k = self.rotary_emb(positions, q, k)
        # Copies, since a view would keep all heads' in memory until the last layer.
        queries += [q.narrow(1, head * self.head_dim, self.head_dim).clone() for head in heads]
        out, _ = self.o_proj(self.attn(q, k, v).reshape(-1, self.stream_width))
        return out


class T3Layer(nn.Module):
    """Pre-norm transformer layer with vLLM's fused residual norms."""

    def __init__(
        self,
        fields: LlamaFields,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ):
        super().__init__()
        self.self_attn = T3Attention(fields, cache_config, quant_config, f"{prefix}.self_attn")
        self.mlp = LlamaMLP(fields.width, fields.mlp_width, "silu", quant_config, prefix=f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(fields.width, eps=fields.norm_eps)
        self.post_attention_layernorm = RMSNorm(fields.width, eps=fields.norm_eps)

    def forward(
        self,
        positions: torch.Tensor,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        heads: Sequence[int],
        queries: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = x
            x = self.input_layernorm(x)
        else:
            x, residual = self.input_layernorm(x, residual)
        x = self.self_attn(positions, x, heads, queries)
        x, residual = self.post_attention_layernorm(x, residual)
        return self.mlp(x), residual


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1, "inputs_embeds": 0})
class T3Backbone(nn.Module):
    """Embeds speech tokens, adds their learned positions, runs the layers."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        fields = LlamaFields.from_hf(vllm_config.model_config.hf_config)
        self.streams, self.width, self.sos_position = fields.streams, fields.width, fields.sos_position
        self.layers = nn.ModuleList(
            T3Layer(fields, vllm_config.cache_config, vllm_config.quant_config, f"{prefix}.layers.{i}")
            for i in range(fields.layers)
        )
        self.kept_heads = [[head for at, head in fields.kept_queries if at == i] for i in range(fields.layers)]
        self.norm = RMSNorm(fields.width, eps=fields.norm_eps)
        self.speech_emb = nn.Embedding(fields.vocab_size, fields.width)
        self.speech_pos_emb = nn.Embedding(fields.speech_positions, fields.width)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Speech token ids [N] -> [N, S*H]: generated tokens are the same in every stream."""
        return self.speech_emb(input_ids).repeat(1, self.streams)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """positions [3, N] (M-RoPE, rows alike) or [N]; inputs_embeds [N, S*H] -> hidden states [N, S*H].

        Where queries are kept, with those, [N, kept, D].
        """
        if positions.ndim == 2:
            positions = positions[0]
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(input_ids)
        x = inputs_embeds.view(-1, self.streams, self.width)
        # Prompt rows (index <= 0) already carry their positions; generated token i has speech position i + 1.
        index = (positions - self.sos_position).clamp(0, self.speech_pos_emb.num_embeddings - 1)
        position_embedding = self.speech_pos_emb(index) * (index > 0).unsqueeze(-1).to(x.dtype)
        x = (x + position_embedding.unsqueeze(1)).view(-1, self.width)
        residual = None
        queries: list[torch.Tensor] = []
        for layer, heads in zip(self.layers, self.kept_heads, strict=True):
            x, residual = layer(positions, x, residual, heads, queries)
        x, _ = self.norm(x, residual)
        x = x.view(-1, self.streams * self.width)
        return (x, torch.stack(queries, dim=1)) if queries else x


class T3ForSpeech(nn.Module, SupportsMRoPE, SupportsQuant):
    """The architecture that vLLM builds: backbone and speech head, loaded from the published file's keys."""

    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            # The conditioning encoder and the text embeddings run outside the engine (conditioning.py).
            "cond_enc.": None,
            "text_": None,
            "tfmr.embed_tokens.": None,
            "tfmr.": "model.",
            "speech_emb.": "model.speech_emb.",
            "speech_pos_emb.emb.": "model.speech_pos_emb.",
            "speech_head.": "lm_head.",
        },
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".gate_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        },
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        if vllm_config.parallel_config.tensor_parallel_size != 1:
            raise ValueError("T3 runs on one device: tensor_parallel_size must be 1")
        set_aside()  # all that an engine needs is imported, and nothing of it is in memory yet
        fields = LlamaFields.from_hf(vllm_config.model_config.hf_config)
        self.streams, self.sos_position = fields.streams, fields.sos_position
        self.model = T3Backbone(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            fields.vocab_size, fields.width, bias=False, prefix=maybe_prefix(prefix, "lm_head")
        )
        self.head_logits = LogitsProcessor(fields.vocab_size)
        # A CUDA graph writes them to one place at each step, and `FollowText` reads them there after it.
        self.kept_queries, rows = fields.kept_queries, vllm_config.scheduler_config.max_num_batched_tokens
        self.register_buffer("queries", torch.zeros(rows, len(self.kept_queries), fields.head_dim), persistent=False)

    def embed_input_ids(self, input_ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: object = None, **kwargs: object
    ) -> tuple[torch.Tensor, int]:
        """Positions [3, P] that end at `sos_position`, and the shift that later tokens get."""
        start = self.sos_position - (len(input_tokens) - 1)
        if start < 0:
            raise ValueError(f"a prompt of {len(input_tokens)} rows exceeds the {self.sos_position + 1} of this engine")
        positions = torch.arange(start, self.sos_position + 1, dtype=torch.long)
        return positions.expand(3, -1).contiguous(), start

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        out = self.model(input_ids, positions, intermediate_tensors, inputs_embeds)
        if isinstance(out, tuple):
            out, queries = out
            self.queries[: len(queries)] = queries
        return out

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[N, S*H] -> [N, S*V]: every stream's logits, for `SpeechSampler` to combine."""
        rows = hidden_states.shape[0]
        logits = self.head_logits(self.lm_head, hidden_states.reshape(rows * self.streams, -1))
        # The head is padded to a multiple of 64, so the logits are a strided slice: reshape, not view.
        return logits.reshape(rows, -1)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
