"""The transformer that fills in blocks, in plain torch: prompts in causal order, a block in both directions.

Module names are the published keys. Linear layers that share an input are one, as in vLLM, so that a quantized T3 file
is the same for both kinds of talker.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.cpu.linear import Linear
from chatterbox_vllm.t3.conditioning import LearnedPositions
from chatterbox_vllm.t3.llama import rotate, rotation

# Of one layer: takes queries, keys and values [N, heads, T, head_dim], gives what was attended to, of the same shape.
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class _Fused(Linear):
    """Linear layers of one input as one; `load_module` reads them by their published names."""

    def __init__(self, inputs: int, outputs: int, *names: str):
        super().__init__(inputs, outputs, bias=False)
        self.fused = {"weight": tuple(f"../{name}.weight" for name in names)}


class _Attention(nn.Module):
    def __init__(self, config: T3Config):
        super().__init__()
        self.heads, inner = config.num_heads, config.num_heads * config.head_dim
        self.qkv_proj = _Fused(config.hidden_size, 3 * inner, "q_proj", "k_proj", "v_proj")
        self.o_proj = Linear(inner, config.hidden_size, bias=False)


class _Mlp(nn.Module):
    def __init__(self, config: T3Config):
        super().__init__()
        self.gate_up_proj = _Fused(config.hidden_size, 2 * config.intermediate_size, "gate_proj", "up_proj")
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        out: torch.Tensor = self.down_proj(F.silu(gate) * up)
        return out


class _Layer(nn.Module):
    def __init__(self, config: T3Config):
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _Mlp(config)

    def forward(
        self,
        x: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """[N, T, H] -> [N, T, H]; tables [N or 1, 1, T, head_dim]."""
        attention = self.self_attn
        qkv = attention.qkv_proj(self.input_layernorm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in qkv)
        attended = attend(rotate(q, cosine, sine), rotate(k, cosine, sine), v)
        x = x + attention.o_proj(attended.transpose(1, 2).flatten(2))
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Transformer(nn.Module):
    def __init__(self, config: T3Config):
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class BlockTransformer(nn.Module):
    """T3's layers, speech embedding and head.

    Args:
        positions: longest sequence, for the rotary tables.
    """

    def __init__(self, config: T3Config, positions: int):
        super().__init__()
        assert config.blocks is not None
        self.config, self.positions = config, positions
        self.tfmr = _Transformer(config)
        self.speech_emb = nn.Embedding(config.speech_embeddings, config.hidden_size)
        self.speech_pos_emb = LearnedPositions(config.speech_positions, config.hidden_size)
        self.speech_head = Linear(config.hidden_size, config.speech_vocab_size, bias=False)
        self.cosine: torch.Tensor | None = None
        self.sine: torch.Tensor | None = None
        self.requires_grad_(False)

    def quantizable_layers(self) -> list[str]:
        """Names of the layers whose weights may be quantized: all linear ones but the head."""
        return [name for name, layer in self.named_modules() if isinstance(layer, nn.Linear) and "tfmr." in name]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Speech tokens or masks [N, T] that begin a block -> [N, T, H]."""
        return self.speech_emb(tokens) + self.speech_pos_emb.first(tokens.shape[1])

    def forward(self, x: torch.Tensor, places: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Hidden states behind the last norm.

        Args:
            x: [N, T, H].
            places: [N or 1, T] int64, where each row stands in its sequence.
            attend: is called for each layer in turn.

        Returns:
            [N, T, H].
        """
        if self.cosine is None or self.sine is None:
            # Not before: the module is made on `meta`.
            self.cosine, self.sine = (table.to(x) for table in rotation(self.config, self.positions))
        cosine, sine = self.cosine[places].unsqueeze(1), self.sine[places].unsqueeze(1)
        for index, layer in enumerate(self.tfmr.layers):
            x = layer(x, cosine, sine, lambda q, k, v, index=index: attend(index, q, k, v))
        out: torch.Tensor = self.tfmr.norm(x)
        return out

    def log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., V] float32."""
        return self.speech_head(hidden).float().log_softmax(dim=-1)

    def prior(self) -> torch.Tensor:
        """What the model says without text and voice: the mean over a first block of masks, [V] float32.

        In causal order, as published: start-of-speech and the masks are one sequence of their own.
        """
        config, device = self.config, self.speech_emb.weight.device
        assert config.blocks is not None
        size = config.blocks.block_size
        tokens = torch.tensor([[config.start_speech_token, *[config.mask_token] * size]], device=device)
        places = torch.arange(size + 1, device=device)[None]
        hidden = self(self.embed(tokens), places, causal)
        return self.log_probabilities(hidden[0, :size]).exp().mean(dim=0)


def causal(index: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of whole sequences that see what is before them."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
