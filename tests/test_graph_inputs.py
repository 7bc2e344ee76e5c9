"""Where CUDA graphs find their inputs; recording them takes a card (test_gpu_s3gen.py)."""

from __future__ import annotations

from typing import Any

import torch

from chatterbox_vllm.cuda.graphs import GraphedFunction, GraphPool, _Recording


def graphed(*inputs: torch.Tensor) -> GraphedFunction:
    function = GraphedFunction(lambda *_: None, most=4, pool=GraphPool())
    graph: Any = None
    function._recordings[()] = _Recording(graph, inputs, None)
    return function


def test_inputs_of_fewer_rows_lie_in_larger_ones() -> None:
    rows = torch.zeros(8, 3)
    function = graphed(rows)
    room = function._room(0, torch.ones(5, 3))
    assert room.shape == (5, 3) and room.data_ptr() == rows.data_ptr()
    for other in (torch.ones(9, 3), torch.ones(5, 4), torch.ones(5, 3, dtype=torch.float64), torch.ones(5)):
        own = function._room(0, other)
        assert (own.shape, own.dtype) == (other.shape, other.dtype) and own.data_ptr() != rows.data_ptr()


def test_a_number_is_an_input_like_others() -> None:
    moment = torch.tensor(0.5)
    assert graphed(moment)._room(0, torch.tensor(0.25)) is moment
    assert graphed(torch.zeros(4))._room(0, torch.tensor(0.25)).shape == ()
