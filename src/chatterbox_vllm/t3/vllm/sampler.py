"""T3's sampling inside vLLM: one processor that takes the whole batch from logits to tokens.

vLLM is told temperature 0, so that it adds nothing of its own: what comes back from here allows one token a row, and
vLLM takes the likeliest. Requests carry their values in `SamplingParams.extra_args`:

    cfg_weight           guidance weight, >= 0 (default 0.5)
    repetition_penalty   > 0 (default 1, none)
    temperature          >= 0 (default 1); 0 takes the likeliest token
    min_p                0 to 1 (default 0)
    top_p                nucleus, 0 < top_p <= 1 (default 1)
    top_k                so many of the likeliest, a whole number >= 0 (default 0, all)
    seed                 seed of the draws, 0 <= seed < 2**64 (default: a random one)
    uniforms             the draws themselves, a list of floats in [0, 1), one a token, instead of a seed
"""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.t3.draws import uniforms
from chatterbox_vllm.t3.sampling import RowValues, choose
from chatterbox_vllm.t3.vllm.config import SamplingFields

_LARGEST_SEED = (1 << 64) - 1
# Each value's default, lowest and highest, and whether the lowest itself is out.
_RANGES = {
    "cfg_weight": (0.5, 0.0, math.inf, False),
    "repetition_penalty": (1.0, 0.0, math.inf, True),
    "temperature": (1.0, 0.0, math.inf, False),
    "min_p": (0.0, 0.0, 1.0, False),
    "top_p": (1.0, 0.0, 1.0, True),
    "top_k": (0.0, 0.0, math.inf, False),
}
_TOP_P, _TOP_K = (list(_RANGES).index(name) for name in ("top_p", "top_k"))


@dataclass
class _Request:
    """One request: `output` is vLLM's live list, of which the first `noted` are in row `slot` of the mask.

    Attributes:
        passing: what the penalty falls on before the first token alone, or -1.
    """

    slot: int
    passing: int
    values: tuple[float, ...]  # in the order of _RANGES
    seed: int
    given: Sequence[float] | None
    output: list[int]
    noted: int = 0


class SpeechSampler(LogitsProcessor):
    """Guidance, repetition penalty, temperature, min-p, top-k, top-p and the seeded draw (sampling.py), for every row.

    What has been spoken is a mask on the device that takes in the token drawn last of each request at every step. The
    draw needs no generator per request: for the same logits the same seed gives the same token on every device and in
    every batch.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        extra = sampling_params.extra_args or {}
        for name, (default, low, high, above) in _RANGES.items():
            value = extra.get(name, default)
            inside = isinstance(value, (int, float)) and low <= value <= high and math.isfinite(value)
            if not inside or (above and value == low) or (name == "top_k" and value % 1):
                raise ValueError(f"{name} must be a number {'above' if above else 'from'} {low} to {high}: {value!r}")
        if sampling_params.temperature != 0 or sampling_params.repetition_penalty != 1.0:
            raise ValueError("give temperature, penalty, min_p and top_p in extra_args, and vLLM itself temperature=0")
        seed = extra.get("seed")
        if seed is not None and (not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED):
            raise ValueError(f"seed must be an integer in [0, 2**64), not {seed!r}")
        given = extra.get("uniforms")
        if given is not None and len(given) < (sampling_params.max_tokens or 0):
            raise ValueError(f"uniforms holds {len(given)} draws for max_tokens={sampling_params.max_tokens}")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        fields = SamplingFields.from_hf(vllm_config.model_config.hf_config)
        self.device = device
        slots = vllm_config.scheduler_config.max_num_seqs
        self.mask = torch.zeros(slots, fields.vocab_size, dtype=torch.bool, device=device)
        self.requests: dict[int, _Request] = {}  # by row
        self.free: list[int] = []
        self.begun: list[tuple[int, list[int]]] = []  # slots that have just been taken, and what is spoken there
        # What follows from the requests, rebuilt when the batch changes, not at every step.
        self.rows: list[_Request] = []
        self.replayed: list[tuple[int, Sequence[float]]] = []  # rows that bring their draws
        self.seeds = self.lengths = np.zeros(0, np.uint64)
        self.slots = torch.zeros(0, dtype=torch.int32, device=device)
        self.values = torch.zeros(0, len(_RANGES), device=device)
        self.nucleus = self.top = False  # whether any row has one
        self.penalty_last = fields.penalty_last
        self._ahead, self._drawn = 0, torch.zeros(0, dtype=torch.int32, device=device)
        if self.mask.is_cuda:
            from chatterbox_vllm.t3.sampling_kernel import compile_choice  # imports triton

            compile_choice(fields.streams, self.mask, fields.penalty_last)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        # Rows that leave give up their slots before new ones ask; a new request may stand in a row that another left.
        for row in {*batch_update.removed, *(added[0] for added in batch_update.added)}:
            self.requests.pop(row, None)
        self.free = sorted(set(range(len(self.mask))) - {request.slot for request in self.requests.values()})
        process_dict_updates(self.requests, batch_update, self._begin)
        self._prepare_mask()
        self.rows = [self.requests[row] for row in range(batch_update.batch_size)]
        self.replayed = [(row, own.given) for row, own in enumerate(self.rows) if own.given is not None]
        self.seeds = np.array([request.seed for request in self.rows], np.uint64)
        self.slots = async_tensor_h2d([request.slot for request in self.rows], self.device, torch.int32)
        table = np.array([request.values for request in self.rows], np.float32).reshape(-1, len(_RANGES))
        self.values = async_tensor_h2d(table, self.device)
        self.nucleus, self.top = bool((table[:, _TOP_P] < 1).any()), bool(table[:, _TOP_K].any())

    def _begin(self, params: SamplingParams, prompt: list[int] | None, output: list[int]) -> _Request:
        slot = self.free.pop()
        # All rows of a prompt have the id of start-of-speech.
        start = set(prompt or ())
        # There is an output already where a request is back after preemption.
        self.begun.append((slot, [*output[:-1], *(() if self.penalty_last else start)]))
        extra: dict[str, Any] = params.extra_args or {}
        seed = extra.get("seed")
        return _Request(
            slot=slot,
            passing=start.pop() if self.penalty_last and start else -1,
            values=tuple(float(extra.get(name, default)) for name, (default, *_) in _RANGES.items()),
            seed=secrets.randbits(64) if seed is None else seed,
            given=extra.get("uniforms"),
            output=output,
        )

    def _prepare_mask(self) -> None:
        """Note what the requests that have begun speak after, for all of them together."""
        begun, self.begun = self.begun, []
        width = self.mask.shape[1]
        slots = [slot for slot, _ in begun]
        places = [slot * width + token for slot, spoken in begun for token in spoken]
        # Indexed assignment of a Python scalar would copy it to the device and wait for all that runs there.
        if slots:
            self.mask.index_fill_(0, async_tensor_h2d(slots, self.device, torch.int64), False)
        if places:
            self.mask.view(-1).index_fill_(0, async_tensor_h2d(places, self.device, torch.int64), True)

    @contextlib.contextmanager
    def going_on(self, ahead: int, drawn: torch.Tensor) -> Iterator[None]:
        """Within, `apply` is for a step of which vLLM knows nothing yet.

        Args:
            ahead: steps since those that vLLM knows of.
            drawn: [N] integers, the tokens of the step before, on the device.
        """
        self._ahead, self._drawn = ahead, drawn
        try:
            yield
        finally:
            self._ahead = 0

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """[N, S * V] float32 -> [N, V]: zero for the chosen token, -inf for all others."""
        vocabulary = self.mask.shape[1]
        if len(self.rows) != len(logits):
            # vLLM's own trial runs have no custom processors, so this is never one of them.
            raise GenerationError(
                f"the sampler was told of {len(self.rows)} requests and got the logits of {len(logits)}, so it "
                "cannot guide them; install the vLLM that this version of chatterbox-vllm names"
            )
        step = async_tensor_h2d(self._step(), self.device)
        if self._ahead:
            step[1] = self._drawn
        if logits.is_cuda:
            from chatterbox_vllm.t3.sampling_kernel import choose_one_hot  # imports triton

            return choose_one_hot(logits, self.values, self.slots, step, self.mask, self.penalty_last)
        u, fresh, passing = step.unsqueeze(-1)
        slots, ids = self.slots.long(), torch.arange(vocabulary, device=self.device)
        spoken = self.mask[slots] | (ids == fresh)
        self.mask[slots] = spoken
        cfg_weight, penalty, temperature, min_p, top_p, top_k = self.values.unsqueeze(-1).unbind(1)
        values = RowValues(
            cfg_weight, penalty, temperature, min_p, top_p if self.nucleus else None, top_k if self.top else None
        )
        token = choose(logits, values, spoken | (ids == passing), u, self.penalty_last)
        one_hot = torch.full((len(logits), vocabulary), float("-inf"), device=self.device)
        return one_hot.scatter_(1, token.unsqueeze(1), 0.0)

    def _step(self) -> np.ndarray:
        """[3, N] float64, see `choose_one_hot`: the draws, the tokens to note, and what the penalty falls on once."""
        step = np.full((3, len(self.rows)), -1.0)
        if not self._ahead:  # else what was drawn is on the device alone
            self.lengths = np.fromiter((len(request.output) for request in self.rows), np.uint64, len(self.rows))
            for row, request in enumerate(self.rows):
                if request.output:
                    step[1, row] = request.output[-1]
                else:
                    step[2, row] = request.passing
        step[0] = uniforms(self.seeds, self.lengths + np.uint64(self._ahead))
        for row, given in self.replayed:  # a token behind the last of them is one that vLLM throws away
            step[0, row] = given[min(int(self.lengths[row]) + self._ahead, len(given) - 1)]
        return step
