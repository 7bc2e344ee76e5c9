"""Teacher forcing inside vLLM: a request says given tokens, and the logits that it would have drawn from are kept.

The tokens go the way of every generation (prefill, decode steps, CUDA graphs, quantized layers, paged KV cache), so
what is kept is what the engine computes when it speaks, on any device and under any quantization. Only the choice is
taken from the sampler: `TeacherForcing` stands behind guidance and before everything else that changes logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Self
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from chatterbox_vllm.errors import ConfigError

ARGUMENT = "forced"


class ForcedTokens:
    """Tokens that a request must say, and what the model thought at each; handed to `T3Stage.add`.

    Attributes:
        tokens: at least one, each below the vocabulary size.
        logits: float32 [tokens, vocabulary] on the CPU, both guidance streams combined, before repetition penalty,
            temperature and truncation. Rows of steps that have not run are NaN.

    Raises:
        ConfigError: no tokens, or one outside the vocabulary.
    """

    def __init__(self, tokens: Sequence[int], vocab_size: int):
        self.tokens = tuple(tokens)
        if not self.tokens:
            raise ConfigError("there are no tokens to force; give at least one")
        if not all(0 <= token < vocab_size for token in self.tokens):
            raise ConfigError(f"forced tokens must be from 0 to {vocab_size - 1}, found {max(self.tokens)}")
        self.logits = torch.full((len(self.tokens), vocab_size), float("nan"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # vLLM copies what a request carries; the caller's object is the one to fill.
        return self


class TeacherForcing(LogitsProcessor):
    """Keeps the guided logits of requests that carry `ForcedTokens`, then allows the forced token alone."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        forced = (sampling_params.extra_args or {}).get(ARGUMENT)
        if forced is not None and not isinstance(forced, ForcedTokens):
            raise ValueError(f"{ARGUMENT} must be a ForcedTokens, not {type(forced).__name__}")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        # By row: what to force, and vLLM's live list of the tokens so far.
        self.requests: dict[int, tuple[ForcedTokens, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, self._begin)

    @staticmethod
    def _begin(
        params: SamplingParams, _prompt: list[int] | None, output: list[int]
    ) -> tuple[ForcedTokens, list[int]] | None:
        forced = (params.extra_args or {}).get(ARGUMENT)
        return None if forced is None else (forced, output)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        # A request that has said everything may stand here once more before vLLM takes it away.
        due = [(row, forced, len(said)) for row, (forced, said) in self.requests.items()]
        due = [(row, forced, step) for row, forced, step in due if row < len(logits) and step < len(forced.tokens)]
        if not due:
            return logits
        rows = torch.tensor([row for row, _, _ in due], device=logits.device)
        kept = logits[rows].float().cpu()
        # A prompt taken in over several steps comes here at each with no token said: the last of them counts.
        for (_, forced, step), row_logits in zip(due, kept, strict=True):
            forced.logits[step] = row_logits
        tokens = torch.tensor([forced.tokens[step] for _, forced, step in due], device=logits.device)
        logits[rows] = float("-inf")
        logits[rows, tokens] = 0.0
        return logits
