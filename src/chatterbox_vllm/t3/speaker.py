"""What the talker needs of a voice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.tensors import content_key, require_floats, require_ids

# Embeddings have unit length. Blends of several are shorter and exaggerated ones longer, which is fine.
_LARGEST_EMBEDDING = 10.0


@dataclass(frozen=True, eq=False)
class SpeakerConditioning:
    """One speaker's conditioning of T3, on the CPU. Treat the tensors as constants: `key` stands for them.

    Attributes:
        speaker_embedding: from the voice encoder, float32 [1, 256], of unit length.
        speech_prompt: speech tokens of the reference clip's beginning, int64 [n]: of 6 s and 150 at most, of Turbo 15 s
            and 375.
    """

    speaker_embedding: torch.Tensor
    speech_prompt: torch.Tensor

    @cached_property
    def key(self) -> str:
        """A hash of the contents, for caches."""
        return content_key(speaker_embedding=self.speaker_embedding, speech_prompt=self.speech_prompt)

    @property
    def nbytes(self) -> int:
        return self.speaker_embedding.nbytes + self.speech_prompt.nbytes

    def check(self, config: T3Config) -> None:
        """Whether T3 of this configuration can be conditioned by it.

        Raises:
            ConfigError: names what does not fit.
        """
        shape = (1, config.speaker_embedding_size)
        require_floats("speaker_embedding", self.speaker_embedding, shape, _LARGEST_EMBEDDING)
        # The ids of speech come first in T3's vocabulary, its control tokens after them.
        require_ids("speech_prompt", self.speech_prompt, config.start_speech_token, config.speech_prompt_tokens)
