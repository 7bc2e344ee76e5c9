"""Which CUDA graphs T3's steps have, asked of vLLM's own table of them; nothing is recorded on a CPU."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

from .reasons import NO_TRITON

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON),
]


def dispatcher(version: int, mode: str = "FULL_AND_PIECEWISE") -> Any:
    """Of an engine for four sequences whose attention is FlashAttention of this version."""
    from chatterbox_vllm.t3.vllm.environment import prepare_environment

    prepare_environment()
    from vllm.config import CUDAGraphMode

    from chatterbox_vllm.t3.vllm.attention import DecodeAttention
    from chatterbox_vllm.t3.vllm.prompt_graphs import WholeStepDispatcher

    attention = DecodeAttention.__new__(DecodeAttention)
    attention.vllm_flash_attn_version = version
    compilation = SimpleNamespace(
        cudagraph_mode=CUDAGraphMode[mode],
        is_attention_compiled_piecewise=lambda: True,
        max_cudagraph_capture_size=16,
        cudagraph_capture_sizes=[1, 2, 4, 8, 16],
        compile_sizes=[],
        static_forward_context={"a layer": SimpleNamespace(impl=attention)},
    )
    config = SimpleNamespace(
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        num_speculative_tokens=0,
        lora_config=None,
    )
    found = WholeStepDispatcher(config)
    found.initialize_cudagraph_keys(CUDAGraphMode[mode])
    return found


def graph(found: Any, rows: int, uniform: bool) -> tuple[str, int, bool]:
    """Whether a step is a whole graph or in pieces, of how many rows, and whether it is for decoding alone."""
    mode, step = found.dispatch(rows, uniform_decode=uniform)
    return mode.name, step.num_tokens, step.uniform


def test_a_step_with_prompts_is_one_graph_where_attention_can_be_recorded() -> None:
    found = dispatcher(version=3)
    assert graph(found, 3, uniform=True) == ("FULL", 4, True)
    assert graph(found, 3, uniform=False) == ("FULL", 4, False)
    assert graph(found, 9, uniform=False) == ("FULL", 16, False)
    assert graph(found, 17, uniform=False)[0] == "NONE"
    modes = [mode.name for mode, _ in found.get_capture_descs()]
    assert modes == ["FULL"], "no graph is recorded that nothing asks for"


def test_elsewhere_it_is_in_pieces_as_vllm_has_it() -> None:
    found = dispatcher(version=2)
    assert graph(found, 3, uniform=True) == ("FULL", 4, True)
    assert graph(found, 9, uniform=False) == ("PIECEWISE", 16, False)
    only_decoding = dispatcher(version=3, mode="FULL_DECODE_ONLY")
    assert graph(only_decoding, 9, uniform=False)[0] == "NONE"


def test_no_sequence_is_longer_than_its_table_while_steps_are_recorded() -> None:
    found = dispatcher(version=3)
    from vllm.v1.worker import gpu_model_runner

    from chatterbox_vllm.t3.vllm.prompt_graphs import WholeStepDispatcher, recording_whole_steps

    asked: list[tuple[int, Any]] = []
    (_, steps), *_ = found.get_capture_descs()
    with pytest.MonkeyPatch.context() as patch:
        runner_type = gpu_model_runner.GPUModelRunner
        patch.setattr(
            runner_type,
            "_warmup_and_capture",
            lambda runner, step, profile_seq_lens=None, **more: asked.append((step.num_tokens, profile_seq_lens)),
        )
        before = gpu_model_runner.CudagraphDispatcher
        with recording_whole_steps():
            assert gpu_model_runner.CudagraphDispatcher is WholeStepDispatcher
            for step in steps:
                runner_type._warmup_and_capture(SimpleNamespace(max_model_len=10), step)
        assert gpu_model_runner.CudagraphDispatcher is before
    assert sorted(asked, key=str) == sorted(
        [(1, None), (2, None), (4, None), (2, 2), (4, 4), (8, 8), (16, 10)], key=str
    )
