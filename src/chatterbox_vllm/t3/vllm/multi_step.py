"""Several decode steps for one turn of vLLM's scheduler.

A step of vLLM takes the host time for each request: 4.7 ms of Python with 186 (docs/performance.md). Where every
request of a batch is drawing tokens, all that changes from one step to the next are numbers: positions, lengths, slots
of the KV cache and the last tokens. So the runner's forward pass and the sampler are called again with these, and vLLM
is told the tokens of all steps at once, as if it had speculated on them.

vLLM gives each request the blocks for as many tokens ahead as it gives to speculation. What is drawn behind a request's
end is thrown away by vLLM's own check of its tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import torch
from vllm.forward_context import get_forward_context, override_forward_context

from chatterbox_vllm.t3.vllm.sampler import SpeechSampler


class MultiStep:
    """Makes an engine's decode steps come several at a time; fewer where somebody waits for the first of them.

    Args:
        engine: vLLM's, started without asynchronous scheduling.
        most: decode steps for a turn of the scheduler.

    Attributes:
        should_yield: asked between two steps whether to end the turn; None never does.
    """

    def __init__(self, engine: Any, most: int):
        self._most = most
        self.should_yield: Callable[[], bool] | None = None
        (self._runner,) = engine.collective_rpc(lambda worker: worker.model_runner)
        (self._sampler,) = (s for s in self._runner.input_batch.logitsprocs.all if isinstance(s, SpeechSampler))
        self._scheduler = engine.engine_core.engine_core.scheduler
        self._scheduler.num_lookahead_tokens = most - 1
        self._told = engine.output_processor.request_states
        self._context: Any = None
        self._forwarded: dict[str, Any] = {}  # what the last forward pass was called with
        self._described: dict[str, Any] = {}  # and what its attention was told of the batch
        runner = self._runner
        self._forward, runner._model_forward = runner._model_forward, self._noting_forward
        self._describe, runner._build_attention_metadata = runner._build_attention_metadata, self._noting_description
        self._sample, runner._sample = runner._sample, self._sampling
        scheduler = self._scheduler
        self._update, scheduler.update_from_output = scheduler.update_from_output, self._updating
        self._append, scheduler._update_request_with_output = scheduler._update_request_with_output, self._appending

    def _noting_forward(self, **given: Any) -> Any:
        self._context, self._forwarded = get_forward_context(), given
        return self._forward(**given)

    def _noting_description(self, *args: Any, **given: Any) -> Any:
        self._described = given
        return self._describe(*args, **given)

    def _sampling(self, logits: torch.Tensor, speculated: Any) -> Any:
        first = self._sample(logits, speculated)
        steps = self._steps(len(logits))
        if steps == 1:
            return first
        tokens = [first.sampled_token_ids]
        for step in range(1, steps):
            if self.should_yield is not None and self.should_yield():
                break
            logits = self._step(tokens[-1].squeeze(1))
            with self._sampler.going_on(step, tokens[-1].squeeze(1)):
                tokens.append(self._sample(logits, None).sampled_token_ids)
        return dataclasses.replace(first, sampled_token_ids=torch.cat(tokens, dim=1))

    def _steps(self, rows: int) -> int:
        """How many this time: all rows have to be decoding, have room, and one at least a use for them."""
        runner, requests = self._runner, self._scheduler.requests
        if self._described["max_query_len"] > 1 or runner.discard_request_mask.np[:rows].any():
            return 1
        batch = [requests[name] for name in runner.input_batch.req_ids if name in requests]
        useful = max((request.max_tokens - request.num_output_tokens for request in batch), default=1)
        room = runner.max_model_len - int(runner.optimistic_seq_lens_cpu[:rows].max())
        awaited = (own for own in batch if own.num_output_tokens < own.sampling_params.extra_args["awaited"])
        return max(1, min(self._most, useful, room, *map(self._until_told, awaited)))

    def _until_told(self, request: Any) -> int:
        """Steps until a request's tokens are told again, or two thirds of a telling.

        So a newcomer alone has its tokens at once. Where several wait at different times a turn goes on nevertheless:
        it costs as much beside its steps as two steps or more, so that with short ones all would be later in the end.
        """
        every = request.sampling_params.stream_interval
        since = request.num_output_tokens - self._told[request.request_id].sent_tokens_offset
        return max(every - since, 2 * every // 3)

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits after tokens [N]."""
        runner, given, rows = self._runner, self._forwarded, len(tokens)
        positions = given["positions"]
        runner.positions[:rows] += 1
        if positions.data_ptr() != runner.positions.data_ptr():  # M-RoPE has positions of its own
            positions[..., :rows] += 1
        runner.seq_lens[:rows] += 1
        runner.optimistic_seq_lens_cpu[:rows] += 1
        begins = runner.query_start_loc.gpu[: rows + 1]
        runner.input_batch.block_table.compute_slot_mapping(rows, begins, runner.positions[:rows])
        given["inputs_embeds"][:rows] = runner.model.embed_input_ids(tokens)
        self._context.attn_metadata, _ = self._describe(**self._described)
        with override_forward_context(self._context):
            hidden = self._forward(**given)
        return runner.model.compute_logits(hidden[:rows])

    def _updating(self, scheduled: Any, output: Any) -> Any:
        """Tell the scheduler's requests of the positions that were computed beyond what it had scheduled."""
        for name, row in output.req_id_to_index.items():
            request = self._scheduler.requests.get(name)
            if request is not None and output.sampled_token_ids:
                request.num_computed_tokens += max(0, len(output.sampled_token_ids[row]) - 1)
        return self._update(scheduled, output)

    def _appending(self, request: Any, drawn: list[int], **more: Any) -> tuple[list[int], bool]:
        """Give a request its tokens. vLLM looks at one after the other; those that cannot end it go in together."""
        room = min(request.max_tokens - request.num_output_tokens, self._scheduler.max_model_len - request.num_tokens)
        ends = {*(request.sampling_params.stop_token_ids or ()), request.sampling_params.eos_token_id}
        before_last = drawn[: max(0, min(len(drawn), room) - 1)]
        certain = list(itertools.takewhile(lambda token: token not in ends, before_last))
        if certain:
            request.append_output_token_ids(certain)
        told, stopped = self._append(request, drawn[len(certain) :], **more)
        return certain + told, stopped
