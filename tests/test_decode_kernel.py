"""The attention kernel of T3's decode steps against plain torch; on the CPU by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from .reasons import NO_TRITON

_BLOCK = 16


def largest_difference(
    device: str,
    dtype: torch.dtype,
    lengths: list[int],
    heads: int = 2,
    width: int = 64,
    alike: Mapping[int, int] | None = None,
) -> float:
    """Between the kernel's and torch's output, for random keys and values in shuffled blocks.

    Args:
        alike: by the first row of 16, the blocks that these begin with alike; none where they share nothing at all.
    """
    from chatterbox_vllm.t3.decode_kernel import decode_attention
    from chatterbox_vllm.t3.shared_kernel import SharedPlaces, find_shared

    generator = torch.Generator().manual_seed(0)
    most = -(-max(lengths) // _BLOCK)
    blocks = len(lengths) * most
    # As vLLM lays it out: the places of a block hold all heads, and are seen as [blocks, heads, places, 2 * width].
    cache = torch.randn(blocks, _BLOCK, heads, 2 * width, generator=generator).to(device, dtype).transpose(1, 2)
    table = torch.randperm(blocks, generator=generator).view(len(lengths), most).to(device, torch.int32)
    query = torch.randn(len(lengths), heads, width, generator=generator).to(device, dtype)
    out = torch.full_like(query, 7.0)
    shared, there = None, torch.tensor(lengths, dtype=torch.int32, device=device)
    if alike is not None:
        for first, count in alike.items():
            table[first : first + 16, :count] = table[first, :count].clone()
        # Room for more rows, and of an earlier batch.
        shared = SharedPlaces.empty(len(lengths) + 16, heads, width, torch.device(device))
        shared.lengths.fill_(48)
        find_shared(table, there, _BLOCK, shared)
        expected = [_BLOCK * alike.get(first, 0) for first in range(0, len(lengths), 16)]
        assert shared.lengths.tolist()[: len(expected)] == expected and not shared.lengths[len(expected) :].any()
    decode_attention(query, cache, table, there, out, width**-0.5, shared)
    largest = 0.0
    for row, length in enumerate(lengths):
        cached = cache[table[row].long()].transpose(1, 2).reshape(-1, heads, 2 * width)[:length].double()
        k, v = cached.transpose(0, 1).chunk(2, -1)
        scores = (k @ query[row].double().unsqueeze(-1)).squeeze(-1) * width**-0.5
        expected = (scores.softmax(-1).unsqueeze(1) @ v).squeeze(1) if length else torch.zeros_like(query[row])
        largest = max(largest, float((out[row].double() - expected).abs().max()))
    return largest


# 37 sequences: 16 that begin with 5 blocks alike, 16 with none, and of the last five two that fill up the batch.
LENGTHS = [*range(81, 97), *range(1, 17), 50, 65, 120, 0, 0]


def interpreted(script: str) -> str:
    """The last line that a script prints which runs kernels in Triton's interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON)
@pytest.mark.parametrize("given", ["[0, 1, 16, 37, 150]", "LENGTHS, alike={0: 5, 32: 3}", "[70] * 18, alike={}"])
def test_the_kernel_by_the_interpreter(given: str) -> None:
    script = (
        "import json, torch; from tests.test_decode_kernel import LENGTHS, largest_difference as d; "
        f"print(json.dumps(d('cpu', torch.float32, {given})))"
    )
    assert json.loads(interpreted(script)) < 1e-5


def mixed_step() -> list[bool]:
    """Whether in batch-invariant mode rows are the same to the last bit alone and beside prompts.

    What fills its output with the places of each sequence stands in for FlashAttention.
    """
    from chatterbox_vllm.t3.vllm.environment import prepare_environment

    prepare_environment()
    from chatterbox_vllm.t3.vllm.attention import DecodeAttention, Decodes, FlashAttentionImpl

    def fill(self, layer, query, key, value, cache, metadata, output, *args):
        counts = metadata.query_start_loc.diff()
        output += metadata.decodes.prompt_lengths.repeat_interleave(counts).view(-1, 1, 1)

    FlashAttentionImpl.forward = fill
    layer = DecodeAttention.__new__(DecodeAttention)
    layer.scale, layer.batch_invariant_enabled = 0.125, True
    generator = torch.Generator().manual_seed(0)
    heads, width, blocks = 2, 64, 40
    cache = torch.randn(blocks, _BLOCK, heads, 2 * width, generator=generator).transpose(1, 2)
    table = torch.randperm(blocks, generator=generator).view(4, 10).to(torch.int32)
    query = torch.randn(8, heads, width, generator=generator)
    kept = Decodes.empty(6, torch.device("cpu"))

    def attend(rows: list[int], sequences: list[int], begins: list[int], lengths: list[int]) -> torch.Tensor:
        begin, places = (torch.tensor(own, dtype=torch.int32) for own in (begins, lengths))
        step = SimpleNamespace(
            num_actual_tokens=len(rows),
            max_query_len=max(b - a for a, b in itertools.pairwise(begins)),
            query_start_loc=begin,
            seq_lens=places,
            block_table=table[sequences],
            decodes=kept.of(begin, places),
        )
        output = torch.zeros(len(rows), heads, width)
        layer.forward(None, query[rows], None, None, cache, step, output)
        return output

    # Sequences 0 and 2 decode, with 150 and 9 places; 1 and 3 have prompts of four and two rows.
    mixed = attend([*range(8)], [0, 1, 2, 3], [0, 1, 5, 6, 8], [150, 4, 9, 30])
    alone = [attend([0], [0], [0, 1], [150]), attend([5], [2], [0, 1], [9])]
    prompts = mixed[[1, 2, 3, 4, 6, 7], 0, 0].tolist()
    return [torch.equal(mixed[0], alone[0][0]), torch.equal(mixed[5], alone[1][0]), prompts == [4, 4, 4, 4, 30, 30]]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON)
def test_a_step_with_prompts_in_batch_invariant_mode() -> None:
    pytest.importorskip("vllm")
    script = "import json; from tests.test_decode_kernel import mixed_step; print(json.dumps(mixed_step()))"
    assert json.loads(interpreted(script)) == [True] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_the_kernel_on_a_gpu(rows: int) -> None:
    lengths = [(17 * n) % 700 for n in range(rows - 1)] + [701]
    alike = dict.fromkeys(range(0, rows - 1, 16), 23)  # the last row alone shares nothing
    for dtype, bound in ((torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 1e-5)):
        assert largest_difference("cuda", dtype, lengths, heads=32) < bound
        assert largest_difference("cuda", dtype, [380 + length for length in lengths], heads=16, alike=alike) < bound
