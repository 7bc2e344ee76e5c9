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

from chatterbox_vllm.t3.alignment import FORCED, HELD, STATE_WIDTH, follow
from chatterbox_vllm.t3.vllm.config import AlignmentFields
from chatterbox_vllm.t3.vllm.keys import PackedKeys, head_keys

ARGUMENT = "followed"


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
        self.fields, self.device = fields, device
        self.ends = fields.end_token + torch.arange(fields.streams, device=device) * fields.vocab_size
        self.states = torch.zeros(vllm_config.scheduler_config.max_num_seqs, STATE_WIDTH, device=device)
        self.requests: dict[int, _Request] = {}  # by row
        self.free: list[int] = []
        # What follows from the requests, rebuilt when the batch changes, not at every step.
        self.table = torch.zeros(0, 5, dtype=torch.int64, device=device)
        self.longest_text = 0

    def attach(self, runner: Any) -> None:
        """Remember where vLLM's runner has the queries, the keys and what it says of the batch at each step."""
        model = runner.get_model()
        self.queries = model.queries
        heads = [(model.model.layers[layer].self_attn.attn, head) for layer, head in model.kept_queries]
        # The same tensors for good, filled anew at every step.
        self.blocks = runner.input_batch.block_table[0].block_table
        self.lengths, self.begins = runner.seq_lens, runner.query_start_loc
        if self.device.type == "cuda":
            from chatterbox_vllm.t3.following_kernel import addresses  # imports triton

            self.keys = [head_keys(*own) for own in heads]
            self.pointers = addresses(self.keys)
        else:
            self.packed_keys = [PackedKeys(*own) for own in heads]

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
        self.longest_text = max((request.text.size for request in self.requests.values()), default=0)
        table = [(row, r.slot, r.prompt_rows, r.text.size, r.text.held_for) for row, r in sorted(self.requests.items())]
        self.table = async_tensor_h2d(np.array(table, np.int64).reshape(-1, 5), self.device)

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
        if not self.requests:
            return logits
        if logits.is_cuda:
            from chatterbox_vllm.t3.following_kernel import follow_requests  # imports triton

            follow_requests(
                logits,
                self.queries,
                self.keys,
                self.pointers,
                self.table,
                self.begins.gpu,
                self.lengths,
                self.blocks.gpu,
                self.states,
                self.fields.text_start,
                self.fields.end_token,
                self.fields.streams,
            )
            return logits
        rows, slots, prompt_rows, sizes, held_for = self.table.T
        lengths = self.lengths[rows]
        steps = lengths - prompt_rows
        state, said = follow(self.states[slots], self.attention(rows, lengths), sizes, steps)
        self.states[slots] = state
        held = (said.unfinished & (steps < held_for)).unsqueeze(1)
        forced = (said.long_tail | said.repetition).unsqueeze(1)
        places = rows.unsqueeze(1), self.ends
        logits[places] = logits[places].masked_fill(held, HELD).masked_fill(forced, FORCED)
        return logits

    def attention(self, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """On a CPU: from the newest position of each row to its text, the mean of the heads, [N, longest text]."""
        newest = self.begins.cpu[rows + 1] - 1
        queries = self.queries[newest].float() * self.queries.shape[2] ** -0.5
        end = self.fields.text_start + self.longest_text
        most = -(-max(int(lengths.max()), end) // self.packed_keys[0].block_size)
        blocks = self.blocks.cpu[rows, :most]
        scores = torch.cat([keys.of(blocks) @ queries[:, k, :, None] for k, keys in enumerate(self.packed_keys)], 2)
        beyond = torch.arange(scores.shape[1]) >= lengths.unsqueeze(1)
        weights = scores.masked_fill(beyond.unsqueeze(2), float("-inf")).softmax(dim=1)
        return weights[:, self.fields.text_start : end].mean(dim=2)


def attach(engine: Any) -> None:
    """Show the `FollowText` of an engine that has started what it reads."""
    (runner,) = engine.collective_rpc(lambda worker: worker.model_runner)
    (follower,) = (own for own in runner.input_batch.logitsprocs.all if isinstance(own, FollowText))
    follower.attach(runner)
