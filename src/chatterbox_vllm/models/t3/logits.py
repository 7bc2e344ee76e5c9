"""T3's sampling inside vLLM: guidance and repetition penalty first, the seeded draw after temperature and min-p.

vLLM's V1 sampler runs, in this order: processors that can change the argmax, penalties, temperature, processors that
cannot, its own top-k/top-p, its own draw. With `GuidanceProcessor` and `RepetitionPenalty` among the first and
`SeededDraw` the last of the others, a request sees the published order: guidance, repetition penalty, temperature,
min-p, top-p, draw.

Requests carry their values in `SamplingParams.extra_args`:
    cfg_weight   guidance weight, >= 0 (default 0.5)
    repetition_penalty   > 0 (default 1, none); vLLM's own must stay 1
    seed         seed of the draws, 0 <= seed < 2**64 (default: vLLM's own seed of the request, else random)
    top_p        nucleus, 0 < top_p <= 1 (default 1); vLLM's own `top_p` must stay 1
    uniforms     the draws themselves, a list of floats in [0, 1), one a token, instead of a seed
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from chatterbox_vllm.models.t3.vllm_config import T3EngineFields

DEFAULT_CFG_WEIGHT = 0.5

# SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_LARGEST_SEED = (1 << 64) - 1


def uniforms(seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Draw number `steps` of the streams that belong to `seeds`, both uint64 [N], as float64 [N] in [0, 1).

    A counter-based generator: a draw depends on nothing but these two numbers, so neither the batch around a request
    nor preemption can change it. Seeds are mixed once first, so that neighbouring seeds give unrelated streams.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is what is wanted
        return (_mix(_mix(seeds) + (steps + np.uint64(1)) * _GAMMA) >> np.uint64(11)) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


class GuidanceProcessor(LogitsProcessor):
    """Combines the streams: [N, 2V] -> [N, V] = cond + w * (cond - uncond), each request with its own weight w."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        weight = (sampling_params.extra_args or {}).get("cfg_weight", DEFAULT_CFG_WEIGHT)
        if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ValueError(f"cfg_weight must be a number >= 0, not {weight!r}")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        fields = T3EngineFields.from_hf(vllm_config.model_config.hf_config)
        self.streams, self.vocab_size = fields.streams, fields.vocab_size
        self.device = device
        self.weights: dict[int, float] = {}
        self.column = torch.zeros(0, 1, device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        changed = process_dict_updates(
            self.weights,
            batch_update,
            lambda params, _prompt, _output: float((params.extra_args or {}).get("cfg_weight", DEFAULT_CFG_WEIGHT)),
        )
        if batch_update and (changed or self.column.shape[0] != batch_update.batch_size):
            values = [self.weights.get(row, DEFAULT_CFG_WEIGHT) for row in range(batch_update.batch_size)]
            self.column = async_tensor_h2d(values, self.device, torch.float32).unsqueeze(1)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.streams == 1:
            return logits
        conditional, unconditional = logits[:, : self.vocab_size], logits[:, self.vocab_size :]
        return torch.addcmul(conditional, self.column, conditional - unconditional)


@dataclass
class _Spoken:
    """One request's tokens: `output` is vLLM's live list, of which the first `noted` are in row `slot` of the mask."""

    slot: int
    penalty: float
    output: list[int]
    noted: int = 0


class RepetitionPenalty(LogitsProcessor):
    """Divides positive logits of tokens in the prompt's ids and the output by the penalty, multiplies negative ones.

    The published rule (Keskar et al., arXiv 1909.05858, with the sign handled), each id once. vLLM's own builds every
    request's whole history anew at each step; here a mask on the device takes in one token a request and step.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        penalty = (sampling_params.extra_args or {}).get("repetition_penalty", 1.0)
        if not isinstance(penalty, (int, float)) or not 0 < penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be a number > 0, not {penalty!r}")
        if sampling_params.repetition_penalty != 1.0:
            raise ValueError("give repetition_penalty in extra_args: vLLM's own would be applied on top of it")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        fields = T3EngineFields.from_hf(vllm_config.model_config.hf_config)
        self.device = device
        self.spoken: dict[int, _Spoken] = {}
        slots = vllm_config.scheduler_config.max_num_seqs
        self.mask = torch.zeros(slots, fields.vocab_size, dtype=torch.bool, device=device)
        self.free: list[int] = []
        self.rows = torch.zeros(0, dtype=torch.int64, device=device)
        self.penalties = torch.ones(0, 1, device=device)
        self.active = False

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        # Rows that leave give up their slots before new ones ask; a new request may stand in a row that another left.
        for row in {*batch_update.removed, *(added[0] for added in batch_update.added)}:
            self.spoken.pop(row, None)
        self.free = sorted(set(range(len(self.mask))) - {state.slot for state in self.spoken.values()})
        process_dict_updates(self.spoken, batch_update, self._begin)
        size = batch_update.batch_size
        states = [self.spoken.get(row) for row in range(size)]
        # Rows without a state (none of ours) read slot 0 with a penalty of one, which changes nothing.
        self.rows = async_tensor_h2d([s.slot if s else 0 for s in states], self.device, torch.int64)
        penalties = [s.penalty if s else 1.0 for s in states]
        self.active = any(penalty != 1.0 for penalty in penalties)
        self.penalties = async_tensor_h2d(penalties, self.device, torch.float32).unsqueeze(1)

    def _begin(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Spoken:
        slot = self.free.pop()
        row = self.mask[slot]
        row.fill_(False)
        row.index_fill_(0, async_tensor_h2d(sorted(set(prompt or ())), self.device, torch.int64), True)
        return _Spoken(slot, float((params.extra_args or {}).get("repetition_penalty", 1.0)), output)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        width = self.mask.shape[1]
        fresh = []
        for state in self.spoken.values():
            length = len(state.output)
            if state.noted < length:
                fresh += [state.slot * width + token for token in state.output[state.noted :]]
                state.noted = length
        if fresh:
            # Indexed assignment of a Python scalar would copy it to the device and wait for all that runs there.
            self.mask.view(-1).index_fill_(0, async_tensor_h2d(fresh, self.device, torch.int64), True)
        if not self.active or len(self.rows) != len(logits):
            return logits
        penalized = torch.where(logits < 0, logits * self.penalties, logits / self.penalties)
        return torch.where(self.mask[self.rows], penalized, logits)


@dataclass(frozen=True)
class _DrawState:
    """One request's draws; `output` is vLLM's live list, whose length is the number of tokens so far."""

    seed: int
    top_p: float
    given: Sequence[float] | None
    output: list[int]


class SeededDraw(LogitsProcessor):
    """Draws each request's token by inverting its cumulative distribution at the request's own uniform number.

    The first id, in id order, whose cumulative probability (float64) exceeds u times the total. What is returned allows
    that id alone, so vLLM's own draw, which follows, has no choice left. No generator per request is needed, and for
    the same logits the same seed gives the same token on every device and in every batch.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        extra = sampling_params.extra_args or {}
        top_p = extra.get("top_p", 1.0)
        if not isinstance(top_p, (int, float)) or not 0 < top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {top_p!r}")
        if sampling_params.top_p != 1.0 or sampling_params.top_k > 0:
            raise ValueError("give top_p in extra_args: vLLM's own top_p and top_k would run after the draw")
        seed = extra.get("seed")
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED):
            raise ValueError(f"seed must be an integer in [0, 2**64), not {seed!r}")
        uniforms = extra.get("uniforms")
        if uniforms is not None and len(uniforms) < (sampling_params.max_tokens or 0):
            raise ValueError(f"uniforms holds {len(uniforms)} draws for max_tokens={sampling_params.max_tokens}")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        self.device = device
        self.states: dict[int, _DrawState] = {}
        # The states by row, as arrays: rebuilt when the batch changes, not at every step.
        self.rows: list[_DrawState | None] = []
        self.seeds = np.zeros(0, np.uint64)
        self.top_p: torch.Tensor | None = None

    def is_argmax_invariant(self) -> bool:
        # Greedy requests never come here, and this is what places the draw after temperature and min-p.
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.states, batch_update, self._state)
        if batch_update is None:
            return
        self.rows = [self.states.get(row) for row in range(batch_update.batch_size)]
        self.seeds = np.array([state.seed if state else 0 for state in self.rows], np.uint64)
        nucleus = [state.top_p if state else 1.0 for state in self.rows]
        whole = min(nucleus, default=1.0) == 1.0
        self.top_p = None if whole else async_tensor_h2d(nucleus, self.device, torch.float32).unsqueeze(1)

    @staticmethod
    def _state(params: SamplingParams, _prompt: list[int] | None, output: list[int]) -> _DrawState:
        extra = params.extra_args or {}
        seed = extra.get("seed", params.seed)
        return _DrawState(
            seed=secrets.randbits(64) if seed is None else int(seed),
            top_p=float(extra.get("top_p", 1.0)),
            given=extra.get("uniforms"),
            output=output,
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if len(self.rows) != len(logits):
            return logits  # a trial run of vLLM's, without requests
        if self.top_p is not None:
            _mask_outside_nucleus(logits, self.top_p)
        u = async_tensor_h2d(self._draws(), self.device).unsqueeze(1)
        cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        token = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
        token.clamp_(max=logits.shape[1] - 1)
        return logits.fill_(float("-inf")).scatter_(1, token, 0.0)

    def _draws(self) -> np.ndarray:
        """The next uniform number of every row, float64 [N]."""
        steps = np.fromiter((len(state.output) if state else 0 for state in self.rows), np.uint64, len(self.rows))
        draws = uniforms(self.seeds, steps)
        for row, state in enumerate(self.rows):
            if state is not None and state.given is not None:
                draws[row] = state.given[int(steps[row])]
        return draws


def _mask_outside_nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> None:
    """Set to -inf, in place, the least likely ids of each row whose probabilities sum to at most 1 - top_p.

    Args:
        logits: [N, V] float32.
        top_p: [N, 1] float32.
    """
    ascending, order = logits.sort(dim=-1)
    outside = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    outside[:, -1] = False
    logits.masked_fill_(torch.zeros_like(outside).scatter_(1, order, outside), float("-inf"))
