"""T3 on Llama: RMS norms, gated MLP, rotary positions; learned positions of text and speech in the rows themselves."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.t3.backbone import Backbone, Layer, LinearGroup, Observer, Shape
from chatterbox_vllm.t3.conditioning import PROMPT_TOKENS_ADDED, PromptBuilder

QKV: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT: tuple[str, ...] = ("self_attn.o_proj",)
GATE_UP: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
DOWN: tuple[str, ...] = ("mlp.down_proj",)
INPUT_NORM, POST_NORM = "input_layernorm", "post_attention_layernorm"
LINEARS = (*QKV, *OUT, *GATE_UP, *DOWN)


class Llama(Backbone):
    """See `Backbone`."""

    prefix = "tfmr.layers."
    groups = (
        LinearGroup(QKV, (INPUT_NORM,)),
        LinearGroup(OUT, (QKV[2],)),
        LinearGroup(GATE_UP, (POST_NORM,)),
        LinearGroup(DOWN, (GATE_UP[1],)),
    )
    fused = {
        "self_attn.qkv_proj": QKV,
        "self_attn.o_proj": OUT,
        "mlp.gate_up_proj": GATE_UP,
        "mlp.down_proj": DOWN,
    }
    unclipped = {QKV[0]: 1.0, QKV[1]: 1.0}
    vectors = (INPUT_NORM, POST_NORM)
    rows_around_text = PROMPT_TOKENS_ADDED
    on_device = ("tfmr.norm.", "speech_emb.", "speech_pos_emb.", "speech_head.")
    builder = PromptBuilder

    def layer_shapes(self, config: T3Config) -> dict[str, Shape]:
        width, heads, mlp = config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size
        shapes: dict[str, Shape] = dict.fromkeys(QKV, (heads, width))
        shapes |= {OUT[0]: (width, heads), DOWN[0]: (width, mlp)} | dict.fromkeys(GATE_UP, (mlp, width))
        return shapes | dict.fromkeys(self.vectors, (width,))

    def other_shapes(self, config: T3Config) -> dict[str, Shape]:
        width = config.hidden_size
        return {"tfmr.norm.weight": (width,), "speech_head.weight": (config.speech_vocab_size, width)}

    def conditioning_rows(self, config: T3Config) -> int:
        return config.conditioning_length

    def most_text_tokens(self, config: T3Config) -> int:
        return config.text_positions - 2

    def most_speech_tokens(self, config: T3Config) -> int:
        return config.speech_positions - 1

    def most_positions(self, config: T3Config) -> int:
        return config.speech_positions + config.text_positions

    def run_layer(self, config: T3Config, layer: Layer, x: torch.Tensor, observe: Observer) -> torch.Tensor:
        normed = _rms_norm(x, layer[INPUT_NORM], config.rms_norm_eps)
        observe(QKV, normed)
        q, k, v = (
            F.linear(normed, layer[name]).unflatten(-1, (config.num_heads, config.head_dim)).transpose(1, 2)
            for name in QKV
        )
        cosine, sine = (table.to(x.device) for table in rotation(config, x.shape[1]))
        attended = F.scaled_dot_product_attention(rotate(q, cosine, sine), rotate(k, cosine, sine), v, is_causal=True)
        attended = attended.transpose(1, 2).flatten(2)
        observe(OUT, attended)
        x = x + F.linear(attended, layer[OUT[0]])
        normed = _rms_norm(x, layer[POST_NORM], config.rms_norm_eps)
        observe(GATE_UP, normed)
        gate, up = (F.linear(normed, layer[name]) for name in GATE_UP)
        gated = F.silu(gate) * up
        observe(DOWN, gated)
        return x + F.linear(gated, layer[DOWN[0]])

    def enter(self, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        return x

    def logits(self, config: T3Config, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        norm, head = (weights.get(key).to(x) for key in ("tfmr.norm.weight", "speech_head.weight"))
        return F.linear(_rms_norm(x, norm, config.rms_norm_eps), head)


def rotation(config: T3Config, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [T, head_dim] of RoPE with Llama 3.1's frequency scaling (its published configuration)."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = config.rope_theta**-steps
    # Rotations over the original context: many, keep; few, slow down by the factor; blend in between.
    turns = config.rope_original_max_position * frequencies / (2 * math.pi)
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    frequencies = frequencies * (kept + (1 - kept) / config.rope_factor)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x [..., T, head_dim], tables from `rotation`."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)
