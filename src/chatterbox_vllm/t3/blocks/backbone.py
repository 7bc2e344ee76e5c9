"""Llama's T3 where speech is filled in block by block: the same layers, other prompts and lengths."""

from __future__ import annotations

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.t3.blocks.prompt import BlockPromptBuilder
from chatterbox_vllm.t3.llama import Llama


class BlockLlama(Llama):
    """See `Backbone`."""

    rows_around_text = BlockPromptBuilder.tokens_added
    builder = BlockPromptBuilder

    def most_speech_tokens(self, config: T3Config) -> int:
        """Learned positions begin anew in every block, so it is the length of the table of the first Chatterbox."""
        return config.speech_positions
