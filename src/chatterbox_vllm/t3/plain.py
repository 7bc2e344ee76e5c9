"""T3's transformer in plain torch, one layer in memory at a time: for calibration and for checks, not for speaking.

The same mathematics as the vLLM model (vllm_model.py), teacher-forced: all rows of a sequence are known beforehand.
Both guidance streams are a batch of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.t3.conditioning import PromptBuilder

Layer = dict[str, torch.Tensor]  # a layer's published names without prefix and ".weight", e.g. "self_attn.q_proj"
# Called with the names of the linear layers that share an input, and the input [..., in].
Observer = Callable[[tuple[str, ...], torch.Tensor], None]

QKV: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT: tuple[str, ...] = ("self_attn.o_proj",)
GATE_UP: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
DOWN: tuple[str, ...] = ("mlp.down_proj",)
INPUT_NORM, POST_NORM = "input_layernorm", "post_attention_layernorm"
LINEARS = (*QKV, *OUT, *GATE_UP, *DOWN)


def layer_prefix(index: int) -> str:
    """What a layer's keys start with in the published file."""
    return f"tfmr.layers.{index}."


class PlainT3:
    """Reads layers from a published file when they are needed.

    Args:
        weights: an unquantized T3 file.
        device: where it computes, in float32.
    """

    def __init__(self, config: T3Config, weights: Weights, device: torch.device | str = "cpu"):
        self.config, self.weights, self.device = config, weights, torch.device(device)

    def layer(self, index: int) -> Layer:
        """Layer `index`: linear weights [out, in] and norms [H], float32."""
        prefix = layer_prefix(index)
        names = (*LINEARS, INPUT_NORM, POST_NORM)
        return {name: self.weights.get(f"{prefix}{name}.weight").to(self.device, torch.float32) for name in names}

    def layers(self) -> Iterator[Layer]:
        """All layers, first to last."""
        return (self.layer(i) for i in range(self.config.num_layers))

    @torch.inference_mode()
    def embed(self, builder: PromptBuilder, prompt: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """The rows of one teacher-forced sequence.

        Args:
            prompt: [P, 2H] from `PromptBuilder.prompt`.
            tokens: the speech tokens after it; token i has learned position i + 1.

        Returns:
            [2, P + n, H], conditional stream first.
        """
        streams = torch.stack(prompt.chunk(2, dim=-1))
        positions = builder.speech_pos_emb.emb.weight[1 : len(tokens) + 1]
        speech = builder.speech_emb(torch.tensor(tokens, dtype=torch.int64)) + positions
        return torch.cat([streams, speech.expand(2, -1, -1)], dim=1).to(self.device)

    @torch.inference_mode()
    def run_layer(self, layer: Layer, x: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]; `observe` sees the inputs of all linear layers."""
        config, see = self.config, observe or (lambda names, value: None)
        normed = _rms_norm(x, layer[INPUT_NORM], config.rms_norm_eps)
        see(QKV, normed)
        q, k, v = (
            F.linear(normed, layer[name]).unflatten(-1, (config.num_heads, config.head_dim)).transpose(1, 2)
            for name in QKV
        )
        cosine, sine = self._rotation(x.shape[1])
        attended = F.scaled_dot_product_attention(_rotate(q, cosine, sine), _rotate(k, cosine, sine), v, is_causal=True)
        attended = attended.transpose(1, 2).flatten(2)
        see(OUT, attended)
        x = x + F.linear(attended, layer[OUT[0]])
        normed = _rms_norm(x, layer[POST_NORM], config.rms_norm_eps)
        see(GATE_UP, normed)
        gate, up = (F.linear(normed, layer[name]) for name in GATE_UP)
        gated = F.silu(gate) * up
        see(DOWN, gated)
        return x + F.linear(gated, layer[DOWN[0]])

    def teacher_forced(self, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits [2, T, V] at every row of sequences [2, T, H] from `embed`; float32, one layer in memory at a time."""
        hidden = list(rows)
        for layer in self.layers():
            hidden = [self.run_layer(layer, x) for x in hidden]
        return [self.logits(x) for x in hidden]

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last layer [..., H] -> [..., V]."""
        norm, head = (self.weights.get(k).to(x) for k in ("tfmr.norm.weight", "speech_head.weight"))
        return F.linear(_rms_norm(x, norm, self.config.rms_norm_eps), head)

    def _rotation(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [T, head_dim] of RoPE with Llama 3.1's frequency scaling (its published configuration)."""
        config = self.config
        steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        frequencies = config.rope_theta**-steps
        # Rotations over the original context: many, keep; few, slow down by the factor; blend in between.
        turns = config.rope_original_max_position * frequencies / (2 * math.pi)
        low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (kept + (1 - kept) / config.rope_factor)
        angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, 2)
        return angles.cos().to(self.device), angles.sin().to(self.device)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
