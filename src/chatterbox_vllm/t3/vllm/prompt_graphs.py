"""CUDA graphs of whole steps that take prompts in.

vLLM 0.32 records such a step in pieces, one for each layer, and launches attention between them from Python, since most
attention cannot be recorded for sequences of several lengths. FlashAttention 3 can.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

from vllm.config import CUDAGraphMode
from vllm.forward_context import BatchDescriptor
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
from vllm.v1.worker import gpu_model_runner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from chatterbox_vllm.t3.vllm.attention import DecodeAttention

_RECORDABLE = 3  # version of FlashAttention
# Rows of a graph, at least. vLLM records a graph of one row as a decode step.
_FEWEST_ROWS = 2


class WholeStepDispatcher(CudagraphDispatcher):
    """Has graphs of whole steps in place of those in pieces, where attention can be recorded."""

    def initialize_cudagraph_keys(self, cudagraph_mode: CUDAGraphMode, uniform_decode_query_len: int = 1) -> None:
        super().initialize_cudagraph_keys(cudagraph_mode, uniform_decode_query_len)
        if cudagraph_mode != CUDAGraphMode.FULL_AND_PIECEWISE or not self._recordable():
            return
        pieces = self.cudagraph_keys[CUDAGraphMode.PIECEWISE]
        for rows in [step.num_tokens for step in pieces if step.num_tokens >= _FEWEST_ROWS]:
            whole = self._create_padded_batch_descriptor(rows, uniform_decode=False, has_lora=False)
            self.add_cudagraph_key(CUDAGraphMode.FULL, whole)
        pieces.clear()

    def _recordable(self) -> bool:
        layers = self.vllm_config.compilation_config.static_forward_context.values()
        attention = [layer.impl for layer in layers]
        return all(isinstance(i, DecodeAttention) and i.vllm_flash_attn_version == _RECORDABLE for i in attention)


@contextlib.contextmanager
def recording_whole_steps() -> Iterator[None]:
    """Within, engines start with `WholeStepDispatcher`.

    Before vLLM records a step it runs it with sequences as long as all its rows together. Ours are then no longer than
    a sequence may be, since attention would look up blocks that the table of blocks has no room for.
    """
    warm_up_and_capture = GPUModelRunner._warmup_and_capture

    @functools.wraps(warm_up_and_capture)
    def within_table(runner: GPUModelRunner, step: BatchDescriptor, *args: Any, **kwargs: Any) -> Any:
        if not step.uniform:
            kwargs["profile_seq_lens"] = min(step.num_tokens, runner.max_model_len)
        return warm_up_and_capture(runner, step, *args, **kwargs)

    with (
        mock.patch.object(gpu_model_runner, "CudagraphDispatcher", WholeStepDispatcher),
        mock.patch.object(GPUModelRunner, "_warmup_and_capture", within_table),
    ):
        yield
