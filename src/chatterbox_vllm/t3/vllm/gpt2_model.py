"""T3 on GPT-2 as a vLLM model: one stream, and one learned position for every row, of prompts and of speech alike.

The layer attributes have the published names, so that a file's keys and the model's differ by their beginnings alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsQuant
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors

from chatterbox_vllm.t3.vllm.backend import attention_backend
from chatterbox_vllm.t3.vllm.config import Gpt2Fields
from chatterbox_vllm.t3.vllm.lifetime import set_aside


class Gpt2Attention(nn.Module):
    """Self-attention with one matrix for queries, keys and values."""

    def __init__(
        self,
        fields: Gpt2Fields,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ):
        super().__init__()
        self.c_attn = QKVParallelLinear(
            fields.width,
            fields.head_dim,
            fields.heads,
            fields.heads,
            bias=True,
            quant_config=quant_config,
            prefix=f"{prefix}.c_attn",
        )
        self.c_proj = RowParallelLinear(
            fields.heads * fields.head_dim,
            fields.width,
            bias=True,
            quant_config=quant_config,
            prefix=f"{prefix}.c_proj",
        )
        self.attn = Attention(
            fields.heads,
            fields.head_dim,
            fields.head_dim**-0.5,
            num_kv_heads=fields.heads,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=f"{prefix}.attn",
            attn_backend=attention_backend(fields.head_dim, cache_config, shares_prompt=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        qkv, _ = self.c_attn(x)
        out, _ = self.c_proj(self.attn(*qkv.chunk(3, dim=-1)))
        return out


class Gpt2Mlp(nn.Module):
    """Linear, GELU by its tanh formula, linear."""

    def __init__(self, fields: Gpt2Fields, quant_config: QuantizationConfig | None, prefix: str):
        super().__init__()
        self.c_fc = ColumnParallelLinear(
            fields.width, fields.mlp_width, bias=True, quant_config=quant_config, prefix=f"{prefix}.c_fc"
        )
        self.c_proj = RowParallelLinear(
            fields.mlp_width, fields.width, bias=True, quant_config=quant_config, prefix=f"{prefix}.c_proj"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        x, _ = self.c_fc(x)
        x, _ = self.c_proj(F.gelu(x, approximate="tanh"))
        return x


class Gpt2Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(
        self,
        fields: Gpt2Fields,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ):
        super().__init__()
        self.ln_1 = nn.LayerNorm(fields.width, eps=fields.norm_eps)
        self.attn = Gpt2Attention(fields, cache_config, quant_config, f"{prefix}.attn")
        self.ln_2 = nn.LayerNorm(fields.width, eps=fields.norm_eps)
        self.mlp = Gpt2Mlp(fields, quant_config, f"{prefix}.mlp")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


@support_torch_compile(dynamic_arg_dims={"input_ids": 0, "positions": -1, "inputs_embeds": 0})
class Gpt2Backbone(nn.Module):
    """Embeds speech tokens, adds every row's position, runs the layers."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        fields = Gpt2Fields.from_hf(vllm_config.model_config.hf_config)
        self.h = nn.ModuleList(
            Gpt2Layer(fields, vllm_config.cache_config, vllm_config.quant_config, f"{prefix}.h.{i}")
            for i in range(fields.layers)
        )
        self.ln_f = nn.LayerNorm(fields.width, eps=fields.norm_eps)
        self.wpe = nn.Embedding(fields.positions, fields.width)
        self.speech_emb = nn.Embedding(fields.vocab_size, fields.width)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Speech token ids [N] -> [N, H]."""
        return self.speech_emb(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """positions [N], inputs_embeds [N, H] -> hidden states [N, H]."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_input_ids(input_ids)
        x = inputs_embeds + self.wpe(positions)
        for layer in self.h:
            x = layer(x)
        return self.ln_f(x)


class T3Gpt2ForSpeech(nn.Module, SupportsQuant):
    """The architecture that vLLM builds: backbone and speech head, loaded from the published file's keys."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            # The speaker's row and the text embeddings are made outside the engine (t3/gpt2.py).
            "cond_enc.": None,
            "text_": None,
            "tfmr.wte.": None,
            "tfmr.": "model.",
            "speech_emb.": "model.speech_emb.",
            "speech_head.": "lm_head.",
        },
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        if vllm_config.parallel_config.tensor_parallel_size != 1:
            raise ValueError("T3 runs on one device: tensor_parallel_size must be 1")
        set_aside()  # all that an engine needs is imported, and nothing of it is in memory yet
        fields = Gpt2Fields.from_hf(vllm_config.model_config.hf_config)
        if fields.streams != 1:
            raise ValueError(f"T3 on GPT-2 has one stream, not {fields.streams}")
        self.model = Gpt2Backbone(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            fields.vocab_size, fields.width, bias=True, prefix=maybe_prefix(prefix, "lm_head")
        )
        self.head_logits = LogitsProcessor(fields.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, V]."""
        # The head is padded to a multiple of 64, so its logits are a strided slice, and the sampler reads rows.
        return self.head_logits(self.lm_head, hidden_states, self.lm_head.bias).contiguous()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(_turned(weights), mapper=self.hf_to_vllm_mapper)


def _turned(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """GPT-2's published linear weights are [in, out]."""
    for key, value in weights:
        layers = key.startswith("tfmr.h.") and key.endswith(".weight") and value.dim() == 2
        yield key, value.t() if layers else value
