"""The kernel that follows texts on CUDA against `alignment.follow`, in plain torch; on the CPU by the interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatterbox_vllm.t3.alignment import FORCED, HELD, STATE_WIDTH, follow

from .reasons import NO_TRITON

BLOCK, WIDTH, HEADS, TEXT_START, END, VOCABULARY = 16, 64, 3, 5, 11, 20


def check(device: str, dtype: torch.dtype, sizes: list[int], steps: int, bound: float) -> None:
    """Requests of so many text tokens in every other row of a batch, step by step, with keys that attention follows."""
    from chatterbox_vllm.t3.following_kernel import addresses, follow_requests

    generator = torch.Generator().manual_seed(0)
    rows, streams = 2 * len(sizes), 2
    prompts = [TEXT_START + size + 2 for size in sizes]
    most = -(-(max(prompts) + steps) // BLOCK)
    # As vLLM lays it out: the places of a block hold all heads, and are seen as [blocks, heads, places, 2 * width].
    caches = torch.randn(HEADS, rows * most, BLOCK, 4, 2 * WIDTH, generator=generator).to(device, dtype).transpose(2, 3)
    keys = [caches[k, :, k + 1, :, :WIDTH] for k in range(HEADS)]
    table = torch.randperm(rows * most, generator=generator).view(rows, most).to(device, torch.int32)
    watched = torch.arange(len(sizes)) * 2 + 1
    slots = len(sizes) - 1 - torch.arange(len(sizes))
    held_for = torch.full_like(slots, steps // 2)
    columns = torch.stack([watched, slots, torch.tensor(prompts), torch.tensor(sizes), held_for], 1)
    requests = columns.to(device, torch.int64)
    begins = torch.arange(rows + 1, device=device, dtype=torch.int32) * 2
    states = torch.zeros(len(sizes) + 1, STATE_WIDTH, device=device)
    kept = torch.zeros(len(sizes), STATE_WIDTH)
    decided = set()
    for step in range(-1, steps):
        lengths = torch.zeros(rows, dtype=torch.int32)
        lengths[watched] = torch.tensor(prompts, dtype=torch.int32) + step
        # Each head asks for the key of the text token that is being said, so that there is something to follow.
        queries = torch.randn(2 * rows, HEADS, WIDTH, generator=generator)
        attention = torch.zeros(len(sizes), max(sizes))
        for i, row in enumerate(watched.tolist()):
            wanted = TEXT_START + min(max(step, 0), sizes[i] - 1) * (step % 7 != 5)
            block, place = table[row, wanted // BLOCK].long(), wanted % BLOCK
            newest = torch.stack([own[block, place].float().cpu() for own in keys])
            queries[2 * row + 1] = newest + 0.2 * queries[2 * row + 1]
            query = queries[2 * row + 1].to(dtype).float()
            for k, own in enumerate(keys):
                cached = own[table[row].long()].reshape(-1, WIDTH)[: lengths[row]].float().cpu()
                weights = (cached @ query[k] * WIDTH**-0.5).softmax(0)
                attention[i, : sizes[i]] += weights[TEXT_START : TEXT_START + sizes[i]] / HEADS
        logits = torch.randn(rows, streams * VOCABULARY, generator=generator)
        before = logits.clone()
        at = torch.full((len(sizes),), step)
        kept, said = follow(kept, attention, columns[:, 3], at)
        out, queries = logits.to(device), queries.to(device, dtype)
        follow_requests(
            out, queries, keys, addresses(keys), requests, begins, lengths.to(device), table, states,
            TEXT_START, END, streams,
        )  # fmt: skip
        torch.testing.assert_close(states[slots].cpu(), kept, atol=bound, rtol=0)
        for i, row in enumerate(watched.tolist()):
            held = bool(said.unfinished[i] & (step < held_for[i]))
            forced = bool(said.long_tail[i] | said.repetition[i])
            decided.add((held, forced))
            for stream in range(streams):
                place = before[row, stream * VOCABULARY + END]
                before[row, stream * VOCABULARY + END] = FORCED if forced else HELD if held else place
        assert torch.equal(out.cpu(), before)
    assert decided >= {(False, False), (True, False), (False, True)}
    assert not states[-1].any()  # of no request


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON)
def test_the_kernel_by_the_interpreter() -> None:
    run = "check('cpu', torch.float32, [3, 6, 20, 140], 32, 1e-4)"
    result = subprocess.run(
        [sys.executable, "-c", f"import torch; from tests.test_following_kernel import check; {run}"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_on_a_gpu(dtype: torch.dtype) -> None:
    check("cuda", dtype, [3, 6, 20, 33, 70, 300], 120, 1e-3)
