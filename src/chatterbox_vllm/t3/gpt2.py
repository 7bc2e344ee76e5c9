"""T3 on GPT-2: layer norms, a fused attention matrix, one learned position for every row; one stream, no guidance.

Published linear weights are [in, out] (GPT-2's `Conv1D`); everything here has them as [out, in].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.t3.backbone import Backbone, Layer, LinearGroup, Observer, PromptRows, Shape

ATTENTION, OUT, UP, DOWN = "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
INPUT_NORM, POST_NORM = "ln_1", "ln_2"


class _Speaker(nn.Module):
    """Published under `cond_enc.`."""

    def __init__(self, config: T3Config):
        super().__init__()
        self.spkr_enc = nn.Linear(config.speaker_embedding_size, config.hidden_size)


class Gpt2PromptBuilder(PromptRows):
    """Rows of the speaker, of the reference clip's speech tokens, of the text, and one start-of-speech.

    No row holds a position: the transformer adds one to each, prompt and speech alike.
    """

    def __init__(self, config: T3Config):
        super().__init__(config)
        self.cond_enc = _Speaker(config)
        self.text_emb = nn.Embedding(config.text_vocab_size, config.hidden_size)
        self.speech_emb = nn.Embedding(config.speech_vocab_size, config.hidden_size)

    def prompt_length(self, num_text_tokens: int, speech_prompt_tokens: int) -> int:
        return 1 + speech_prompt_tokens + num_text_tokens + Gpt2.rows_around_text

    @torch.inference_mode()
    def conditioning(
        self, speaker_embedding: torch.Tensor, speech_prompt: torch.Tensor, exaggeration: float
    ) -> torch.Tensor:
        return torch.cat([self.cond_enc.spkr_enc(speaker_embedding), self.speech_emb(speech_prompt)])

    @torch.inference_mode()
    def prompt(self, conditioning: torch.Tensor, text_tokens: list[int]) -> torch.Tensor:
        text = self.text_emb(torch.tensor(text_tokens, dtype=torch.int64))
        start = self.speech_emb.weight[self.config.start_speech_token][None]
        return torch.cat([conditioning, torch.cat([text, start]).to(conditioning.dtype)])

    def speech(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.speech_emb(tokens)


class Gpt2(Backbone):
    """See `Backbone`."""

    prefix = "tfmr.h."
    groups = (
        LinearGroup((ATTENTION,), (INPUT_NORM, f"{INPUT_NORM}.bias")),
        LinearGroup((OUT,), (ATTENTION, f"{ATTENTION}.bias")),
        LinearGroup((UP,), (POST_NORM, f"{POST_NORM}.bias")),
        LinearGroup((DOWN,), ()),  # GELU stands between
    )
    fused = {name: (name,) for name in (ATTENTION, OUT, UP, DOWN)}
    unclipped = {ATTENTION: 2 / 3}
    vectors = (
        INPUT_NORM,
        POST_NORM,
        *(f"{name}.bias" for name in (INPUT_NORM, POST_NORM, ATTENTION, OUT, UP, DOWN)),
    )
    transposed = True
    rows_around_text = 1
    on_device = ("tfmr.wpe.", "tfmr.ln_f.", "speech_emb.", "speech_head.")
    cacheable = True
    builder = Gpt2PromptBuilder

    def layer_shapes(self, config: T3Config) -> dict[str, Shape]:
        width, heads, mlp = config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size
        shapes: dict[str, Shape] = {
            ATTENTION: (3 * heads, width),
            OUT: (width, heads),
            UP: (mlp, width),
            DOWN: (width, mlp),
        }
        shapes |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
        norms = dict.fromkeys((INPUT_NORM, POST_NORM), (width,))
        return shapes | norms | {f"{name}.bias": shape for name, shape in norms.items()}

    def other_shapes(self, config: T3Config) -> dict[str, Shape]:
        width, vocabulary = config.hidden_size, config.speech_vocab_size
        return {
            "tfmr.wpe.weight": (config.positions, width),
            "tfmr.ln_f.weight": (width,),
            "tfmr.ln_f.bias": (width,),
            "speech_head.weight": (vocabulary, width),
            "speech_head.bias": (vocabulary,),
        }

    def conditioning_rows(self, config: T3Config) -> int:
        return 1 + config.speech_prompt_tokens

    def most_text_tokens(self, config: T3Config) -> int:
        return config.text_positions

    def most_speech_tokens(self, config: T3Config) -> int:
        return config.positions - self.rows_around_text - 1

    def most_positions(self, config: T3Config) -> int:
        return config.positions

    def run_layer(self, config: T3Config, layer: Layer, x: torch.Tensor, observe: Observer) -> torch.Tensor:
        normed = _layer_norm(x, layer[INPUT_NORM], layer[f"{INPUT_NORM}.bias"], config)
        observe((ATTENTION,), normed)
        qkv = _linear(normed, layer, ATTENTION).unflatten(-1, (3, config.num_heads, config.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        observe((OUT,), attended)
        x = x + _linear(attended, layer, OUT)
        normed = _layer_norm(x, layer[POST_NORM], layer[f"{POST_NORM}.bias"], config)
        observe((UP,), normed)
        inner = F.gelu(_linear(normed, layer, UP), approximate="tanh")
        observe((DOWN,), inner)
        return x + _linear(inner, layer, DOWN)

    def enter(self, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        return x + weights.get("tfmr.wpe.weight")[: x.shape[-2]].to(x)

    def logits(self, config: T3Config, weights: Weights, x: torch.Tensor) -> torch.Tensor:
        norm, norm_bias, head, head_bias = (
            weights.get(key).to(x)
            for key in ("tfmr.ln_f.weight", "tfmr.ln_f.bias", "speech_head.weight", "speech_head.bias")
        )
        return F.linear(_layer_norm(x, norm, norm_bias, config), head, head_bias)


def _linear(x: torch.Tensor, layer: Layer, name: str) -> torch.Tensor:
    return F.linear(x, layer[name], layer[f"{name}.bias"])


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, config: T3Config) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, config.layer_norm_eps)
