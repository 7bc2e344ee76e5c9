"""Speech is held to its text inside vLLM, by the attention of a few heads.

After a forward pass the queries of these heads lie in a buffer of the model's and their keys in vLLM's KV cache. So
their attention to the text is computed here, for the newest position of those requests alone that want it, and no
attention kernel or CUDA graph knows of it. What it says (`alignment.py`) changes the logit of end-of-speech in every
guidance stream alike, so that guidance leaves it as it is. `FollowText` stands before the sampler for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from chatterbox_vllm.t3.alignment import STATE_WIDTH, follow
from chatterbox_vllm.t3.vllm.config import AlignmentFields
from chatterbox_vllm.t3.vllm.keys import CachedKeys

ARGUMENT = "followed"
# The published logits of an end that is not to come and of one that is; all others stay what they are, far below it.
_HELD, _FORCED = -(2.0**15), 2.0**15


class FollowedText:
    """What a request carries whose text is followed, in `SamplingParams.extra_args`.

    Attributes:
        size: text tokens, their start and stop included, at least 3.
        held_for: speech tokens for which the end is held back at most.
        state: where its speech was when it left the batch, for when it comes back after preemption.
    """

    def __init__(self, size: int, held_for: int):
        self.size, self.held_for = size, held_for
        self.state: torch.Tensor | None = None


@dataclass(frozen=True)
class _Request:
    """One request; `slot` is its row in the table of states."""

    slot: int
    prompt_rows: int
    text: FollowedText


class FollowText(LogitsProcessor):
    """Holds back or brings about the end of speech of requests that carry a `FollowedText`."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        text = (sampling_params.extra_args or {}).get(ARGUMENT)
        if text is not None and not isinstance(text, FollowedText):
            raise ValueError(f"{ARGUMENT} must be a FollowedText, not {type(text).__name__}")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool):
        fields = AlignmentFields.from_hf(vllm_config.model_config.hf_config)
        self.device, self.text_start = device, fields.text_start
        ends = [fields.end_token + stream * fields.vocab_size for stream in range(fields.streams)]
        self.ends = torch.tensor(ends, device=device)
        self.states = torch.zeros(vllm_config.scheduler_config.max_num_seqs, STATE_WIDTH, device=device)
        self.places = torch.arange(vllm_config.model_config.max_model_len, device=device)
        self.requests: dict[int, _Request] = {}  # by row
        # What follows from the requests, rebuilt when the batch changes, not at every step.
        self.rows: list[int] = []
        self.columns = torch.zeros(5, 0, dtype=torch.int64, device=device)
        self.longest_text = 0

    def attach(self, runner: Any) -> None:
        """Show it the model, the cache and the batch of vLLM's runner, once the engine has started."""
        model = runner.get_model()
        layers = model.model.layers
        self.keys = [CachedKeys(layers[at].self_attn.attn, head) for at, head in model.kept_queries]
        self.queries, self.scale = model.queries, self.keys[0].head_dim ** -0.5
        # They are filled anew at every step, and never others.
        self.tables, self.lengths = runner.input_batch.block_table, runner.seq_lens
        self.begins, self.lengths_on_host = runner.query_start_loc, runner.optimistic_seq_lens_cpu.numpy()

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in {*batch_update.removed, *(added[0] for added in batch_update.added)}:
            gone = self.requests.pop(row, None)
            if gone is not None:  # for good, or until there is room for it again
                gone.text.state = self.states[gone.slot].clone()
        self.free = sorted(set(range(len(self.states))) - {request.slot for request in self.requests.values()})
        process_dict_updates(self.requests, batch_update, self._begin)
        self.rows = sorted(self.requests)
        self.longest_text = max((request.text.size for request in self.requests.values()), default=0)
        table = [(row, r.slot, r.prompt_rows, r.text.size, r.text.held_for) for row, r in sorted(self.requests.items())]
        self.columns = async_tensor_h2d(np.array(table, np.int64).reshape(-1, 5), self.device).T

    def _begin(self, params: SamplingParams, prompt: list[int] | None, _output: list[int]) -> _Request | None:
        text: FollowedText | None = (params.extra_args or {}).get(ARGUMENT)
        if text is None:
            return None
        slot = self.free.pop()
        if text.state is None:
            self.states[slot].zero_()
        else:
            self.states[slot] = text.state
        return _Request(slot, len(prompt or ()), text)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """[N, S * V] float32, changed in place."""
        if not self.rows:
            return logits
        rows, slots, prompt_rows, sizes, held_for = self.columns
        lengths = self.lengths[rows]
        steps = lengths - prompt_rows
        state, said = follow(self.states[slots], self.attention(rows, lengths), sizes, steps)
        self.states[slots] = state
        held = (said.unfinished & (steps < held_for)).unsqueeze(1)
        forced = (said.long_tail | said.repetition).unsqueeze(1)
        places = rows.unsqueeze(1), self.ends
        logits[places] = logits[places].masked_fill(held, _HELD).masked_fill(forced, _FORCED)
        return logits

    def attention(self, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """From the newest position of each row to its text, the mean of the heads, float32 [N, longest text]."""
        newest = self.begins.gpu[rows + 1] - 1
        queries = self.queries[newest].float() * self.scale
        end = self.text_start + self.longest_text
        most = max(int(self.lengths_on_host[self.rows].max()), end)
        blocks = self.tables[0].block_table.gpu[:, : -(-most // self.keys[0].block_size)][rows]
        scores = [keys.of(blocks) @ queries[:, k, :, None] for k, keys in enumerate(self.keys)]
        at = torch.cat(scores, dim=2)
        at = at.masked_fill((self.places[: at.shape[1]] >= lengths.unsqueeze(1)).unsqueeze(2), float("-inf"))
        return at.softmax(dim=1)[:, self.text_start : end].mean(dim=2)
