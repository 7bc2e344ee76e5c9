"""What stands before the speech in a prompt of Llama's T3: conditioning, text, and two start-of-speech rows.

All of it is small and computed once a voice or once a text, in float32 on the CPU, where vLLM takes prompts from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.t3.backbone import PromptRows

PROMPT_TOKENS_ADDED = 4  # to conditioning and text: the text's start and stop, and start-of-speech twice


class PerceiverAttention(nn.Module):
    """Pre-norm attention block; one LayerNorm serves queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.proj_out = nn.Linear(width, width)

    def forward(self, query: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """query [B, Q, H], context [B, K, H] -> [B, Q, H]."""
        q, kv = self.norm(query), self.norm(context)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(q), self.to_k(kv), self.to_v(kv))
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return query + self.proj_out(attended)


class Perceiver(nn.Module):
    """Resamples a speech prompt of any length to a fixed number of rows (Jaegle et al., arXiv 2103.03206).

    The same attention block looks at the prompt first and at its own result second.
    """

    def __init__(self, width: int, queries: int, heads: int):
        super().__init__()
        self.pre_attention_query = nn.Parameter(torch.empty(1, queries, width))
        self.attn = PerceiverAttention(width, heads)

    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        """[B, n, H] -> [B, queries, H]."""
        resampled = self.attn(self.pre_attention_query.expand(prompt.shape[0], -1, -1), prompt)
        return self.attn(resampled, resampled)


class ConditioningEncoder(nn.Module):
    """Speaker embedding, speech prompt and emotion to the conditioning rows (published prefix `cond_enc.`)."""

    def __init__(self, config: T3Config):
        super().__init__()
        self.spkr_enc = nn.Linear(config.speaker_embedding_size, config.hidden_size)
        self.emotion_adv_fc = nn.Linear(1, config.hidden_size, bias=False)
        self.perceiver = Perceiver(config.hidden_size, config.perceiver_queries, config.perceiver_heads)

    def forward(self, speaker: torch.Tensor, prompt: torch.Tensor, emotion: torch.Tensor) -> torch.Tensor:
        """speaker [B, E], prompt embeddings [B, n, H], emotion [B] -> [B, 1 + queries + 1, H]."""
        return torch.cat(
            [
                self.spkr_enc(speaker).unsqueeze(1),
                self.perceiver(prompt),
                self.emotion_adv_fc(emotion.view(-1, 1, 1)),
            ],
            dim=1,
        )


class LearnedPositions(nn.Module):
    """A table of position embeddings (published as `….emb.weight`)."""

    def __init__(self, count: int, width: int):
        super().__init__()
        self.emb = nn.Embedding(count, width)

    def first(self, count: int) -> torch.Tensor:
        """Rows 0 .. count-1: [count, H]."""
        return self.emb.weight[:count]


class PromptBuilder(PromptRows):
    """Builds T3 prompts of both guidance streams.

    The unconditional stream differs in one thing: its text embeddings are zero, while the text positions stay.

    Attributes:
        tokens_added: to conditioning and text.
    """

    tokens_added = PROMPT_TOKENS_ADDED

    def __init__(self, config: T3Config):
        super().__init__(config)
        self.cond_enc = ConditioningEncoder(config)
        self.text_emb = nn.Embedding(config.text_vocab_size, config.hidden_size)
        self.text_pos_emb = LearnedPositions(config.text_positions, config.hidden_size)
        self.speech_emb = nn.Embedding(config.speech_embeddings, config.hidden_size)
        self.speech_pos_emb = LearnedPositions(config.speech_positions, config.hidden_size)

    def prompt_length(self, num_text_tokens: int, speech_prompt_tokens: int) -> int:
        return self.config.conditioning_length + num_text_tokens + self.tokens_added

    @torch.inference_mode()
    def conditioning(
        self, speaker_embedding: torch.Tensor, speech_prompt: torch.Tensor, exaggeration: float
    ) -> torch.Tensor:
        """See `PromptRows`.

        Returns:
            [1 + queries + 1, H] float32.
        """
        prompt = self.speech_emb(speech_prompt) + self.speech_pos_emb.first(len(speech_prompt))
        emotion = torch.tensor([exaggeration], dtype=torch.float32)
        return self.cond_enc(speaker_embedding, prompt.unsqueeze(0), emotion)[0]

    @torch.inference_mode()
    def prompt(self, conditioning: torch.Tensor, text_tokens: list[int]) -> torch.Tensor:
        """Both streams' prompt, side by side.

        Args:
            conditioning: [C, H] from `conditioning`, perhaps rounded.
            text_tokens: ids without start and stop; at most `text_positions - 2`.

        Returns:
            [C + n + 4, 2H] in the dtype of `conditioning`: conditional channels first. Rows: conditioning,
            start-of-text, text, stop-of-text, start-of-speech twice (as published, both at speech position 0).
        """
        config = self.config
        ids = torch.tensor([config.start_text_token, *text_tokens, config.stop_text_token])
        positions = self.text_pos_emb.first(len(ids))
        start = self.speech_emb.weight[config.start_speech_token] + self.speech_pos_emb.emb.weight[0]
        tail = start.expand(2, -1)
        rows = [torch.cat([text, tail]).to(conditioning.dtype) for text in (self.text_emb(ids) + positions, positions)]
        return torch.cat([torch.cat([conditioning, own]) for own in rows], dim=-1)

    def speech(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n] -> [n, H]: token i after a prompt has learned position i + 1."""
        return self.speech_emb(tokens) + self.speech_pos_emb.emb.weight[1 : len(tokens) + 1]
