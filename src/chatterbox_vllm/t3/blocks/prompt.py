"""The prompt of T3 that fills in blocks: as Llama's, with one start-of-speech row and a null stream without a voice."""

from __future__ import annotations

import torch

from chatterbox_vllm.t3.conditioning import PromptBuilder


class BlockPromptBuilder(PromptBuilder):
    """Builds T3 prompts of both guidance streams.

    Of the unconditional stream conditioning, text and its positions are zero; start-of-speech stays.
    """

    tokens_added = 3  # the text's start and stop, and start-of-speech

    @torch.inference_mode()
    def prompt(self, conditioning: torch.Tensor, text_tokens: list[int]) -> torch.Tensor:
        """Both streams' prompt, side by side.

        Args:
            conditioning: [C, H] from `conditioning`.
            text_tokens: ids without start and stop; at most `text_positions - 2`.

        Returns:
            [C + n + 3, 2H] float32: conditional channels first. Rows: conditioning, start-of-text, text, stop-of-text,
            start-of-speech.
        """
        config = self.config
        ids = torch.tensor([config.start_text_token, *text_tokens, config.stop_text_token])
        text = self.text_emb(ids) + self.text_pos_emb.first(len(ids))
        start = self.speech_emb.weight[config.start_speech_token] + self.speech_pos_emb.emb.weight[0]
        conditional = torch.cat([conditioning, text, start[None]])
        unconditional = torch.zeros_like(conditional)
        unconditional[-1] = start
        return torch.cat([conditional, unconditional], dim=-1)

    def speech(self, tokens: torch.Tensor) -> torch.Tensor:
        """[n] -> [n, H]: the learned positions begin anew in every block."""
        assert self.config.blocks is not None
        places = torch.arange(len(tokens)) % self.config.blocks.block_size
        return self.speech_emb(tokens) + self.speech_pos_emb.emb.weight[places]
