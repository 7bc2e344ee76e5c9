"""Teacher forcing inside vLLM: a request says given tokens, and the logits that it would have drawn from are kept.

The tokens go the way of every generation (prefill, decode steps, CUDA graphs, quantized layers, paged KV cache), so
what is kept is what the engine computes when it speaks, on any device and under any quantization. `TeacherForcing`
stands before all other processors and leaves them, whatever they are, one token to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import Self
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from chatterbox_vllm.errors import ConfigError

ARGUMENT = "forced"
_DEFAULT_CFG_WEIGHT = 0.5
# Far below every logit and still finite, so that guidance, which takes differences, leaves it what it is.
_NEVER = -1e9


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


@dataclass(frozen=True)
class _Request:
    """One request; `output` is vLLM's live list of the tokens so far."""

    forced: ForcedTokens
    cfg_weight: float
    output: list[int]


class TeacherForcing(LogitsProcessor):
    """Keeps the guided logits of requests that carry `ForcedTokens`, then leaves them the forced token alone."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        forced = (sampling_params.extra_args or {}).get(ARGUMENT)
        if forced is not None and not isinstance(forced, ForcedTokens):
            raise ValueError(f"{ARGUMENT} must be a ForcedTokens, not {type(forced).__name__}")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        self.requests: dict[int, _Request] = {}  # by row

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.requests, batch_update, self._begin)

    @staticmethod
    def _begin(params: SamplingParams, _prompt: list[int] | None, output: list[int]) -> _Request | None:
        extra = params.extra_args or {}
        if ARGUMENT not in extra:
            return None
        return _Request(extra[ARGUMENT], float(extra.get("cfg_weight", _DEFAULT_CFG_WEIGHT)), output)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [N, S * V], S = 1 or 2 streams, changed in place."""
        due = [(row, request) for row, request in self.requests.items() if row < len(logits)]
        # A request that has said everything may stand here once more before vLLM takes it away.
        due = [(row, request) for row, request in due if len(request.output) < len(request.forced.tokens)]
        if not due:
            return logits
        rows = torch.tensor([row for row, _ in due], device=logits.device)
        streams = logits[rows].float()
        # A prompt taken in over several steps comes here at each with no token said: the last of them counts.
        for (_, request), own in zip(due, streams, strict=True):
            request.forced.logits[len(request.output)] = _guided(own, request).cpu()
        tokens = torch.tensor([r.forced.tokens[len(r.output)] for _, r in due], device=logits.device)
        logits[rows] = _NEVER
        vocabulary = due[0][1].forced.logits.shape[1]
        for first in range(0, logits.shape[1], vocabulary):
            logits[rows, first + tokens] = 0.0
        return logits


def _guided(streams: torch.Tensor, request: _Request) -> torch.Tensor:
    """[S * V] -> [V] = cond + w * (cond - uncond), as the sampler combines them."""
    vocabulary = request.forced.logits.shape[1]
    if len(streams) == vocabulary:
        return streams
    conditional, unconditional = streams.split(vocabulary)
    weight = torch.tensor(request.cfg_weight, device=streams.device)
    return torch.addcmul(conditional, weight, conditional - unconditional)
