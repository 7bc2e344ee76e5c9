"""From logits to tokens: the steps on their own, all of it in plain torch, and the kernel against that."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chatterbox_vllm.t3 import sampling
from chatterbox_vllm.t3.draws import uniforms
from chatterbox_vllm.t3.sampling import RowValues

from .reasons import NO_TRITON

VOCABULARY = 50


def column(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def random_logits(rows: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_guidance_has_a_weight_a_row() -> None:
    logits = random_logits(3, 2 * VOCABULARY)
    conditional, unconditional = logits.split(VOCABULARY, dim=1)
    weights = (0.0, 0.5, 1.5)
    expected = torch.stack([c + w * (c - u) for c, u, w in zip(conditional, unconditional, weights, strict=True)])
    torch.testing.assert_close(sampling.guided(logits, column(*weights), VOCABULARY), expected)
    assert sampling.guided(conditional, column(*weights), VOCABULARY) is conditional


def test_penalty_falls_on_spoken_tokens_once_by_their_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 3.0, -3.0]])
    spoken = torch.tensor([[True, True, False, False]])
    assert sampling.penalized(logits, column(2.0), spoken).tolist() == [[1.0, -4.0, 3.0, -3.0]]


def test_min_p_and_nucleus_keep_the_likeliest() -> None:
    logits = torch.tensor([0.05, 0.6, 0.25, 0.1]).log().repeat(3, 1)
    kept = sampling.restricted(logits, column(0.0, 0.3, 0.1), None, column(0.8, 1.0, 0.9)) > float("-inf")
    assert kept.tolist() == [
        [False, True, True, False],
        [False, True, True, False],
        [False, True, True, True],  # 0.05 goes by min-p; the nucleus is then of what is left
    ]
    assert (sampling.restricted(logits, column(0.0, 0.0, 1.0), None, None) > float("-inf")).sum(-1).tolist() == [
        4,
        4,
        1,
    ]


def test_of_equally_likely_ids_the_nucleus_leaves_out_the_first() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.3, 0.1, 0.1, 0.1]]).log()
    for top_p, kept in ((0.95, [0, 1, 2, 3, 4, 5]), (0.75, [1, 2, 4, 5]), (0.65, [1, 2, 5]), (0.01, [2])):
        inside = sampling.restricted(logits, column(0.0), None, column(top_p)) > float("-inf")
        assert inside.nonzero()[:, 1].tolist() == kept


def test_the_top_k_stay_with_their_equals_and_come_before_the_nucleus() -> None:
    logits = torch.tensor([0.05, 0.6, 0.25, 0.05, 0.05]).log().repeat(6, 1)
    kept = sampling.restricted(logits, column(*[0.0] * 6), column(1, 2, 3, 0, 5, 99), None) > float("-inf")
    assert kept.sum(-1).tolist() == [1, 2, 5, 5, 5, 5]  # the third is as likely as two more
    # Of the two likeliest, 0.6 is a share of 0.7; of all, it is below the nucleus.
    both = sampling.restricted(logits[:2], column(0.0, 0.0), column(2, 0), column(0.7, 0.7)) > float("-inf")
    assert both.sum(-1).tolist() == [1, 2]


def test_a_penalty_that_comes_last_falls_on_what_is_kept() -> None:
    logits = torch.tensor([[4.0, 3.9, 0.0, -1.0]])
    spoken = torch.tensor([[True, False, False, True]])
    values = RowValues(column(0), column(8.0), column(1.0), column(0), column(0.6), None)
    u = column(0.99, dtype=torch.float64)
    # First: 0.5 against 3.9, and the nucleus is the second id. Last: both are kept, then the second is likelier.
    assert sampling.choose(logits, values, spoken, column(0.01, dtype=torch.float64)).tolist() == [1]
    assert sampling.choose(logits, values, spoken, column(0.01, dtype=torch.float64), penalty_last=True).tolist() == [0]
    assert sampling.choose(logits, values, spoken, u, penalty_last=True).tolist() == [1]
    greedy = RowValues(column(0), column(8.0), column(0.0), column(0), None, None)
    assert sampling.choose(logits, greedy, spoken, u, penalty_last=True).tolist() == [1]
    # What the restrictions dropped does not come back by a penalty below one.
    lifted = RowValues(column(0), column(0.1), column(0.0), column(0), None, column(2))
    spoken = torch.tensor([[False, False, True, False]])
    assert sampling.choose(torch.tensor([[4.0, 3.9, 1.0, 0.0]]), lifted, spoken, u, penalty_last=True).tolist() == [0]


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = random_logits(4, VOCABULARY)
    draws = (0.0, 0.3, 0.77, 0.999999)
    cumulative = logits.double().softmax(-1).cumsum(-1).numpy()
    expected = [int(np.argmax(cumulative[row] > u)) for row, u in enumerate(draws)]
    assert sampling.draw(logits, column(*draws, dtype=torch.float64)).tolist() == expected


def test_draws_have_the_distribution_they_are_drawn_from() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 4000
    u = torch.from_numpy(uniforms(np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64)))[:, None]
    drawn = sampling.draw(probabilities.log().repeat(count, 1), u)
    shares = torch.bincount(drawn, minlength=4) / count
    assert (shares - probabilities).abs().max() < 0.03


def test_temperature_zero_takes_the_likeliest_after_guidance_and_penalty() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9, 0.0]]).repeat(2, 1)
    spoken = torch.tensor([[False, True, False, False]]).repeat(2, 1)
    values = RowValues(column(0, 0), column(1.2, 1.0), column(0, 0), column(0, 0), None, None)
    assert sampling.choose(logits, values, spoken, column(0.99, 0.99, dtype=torch.float64)).tolist() == [2, 1]


def test_uniform_is_uniform() -> None:
    seeds, steps = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(50, dtype=np.uint64), indexing="ij")
    values = uniforms(seeds, steps)
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.var() - 1 / 12) < 0.003
    # Neighbouring seeds and steps are unrelated.
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.03


def kernel_differences(device: str, rows: int, vocabulary: int) -> list[str]:
    """What the kernel does otherwise than `choose`, for rows of all kinds; also how it leaves the mask."""
    from chatterbox_vllm.t3.sampling_kernel import choose_one_hot

    generator = torch.Generator().manual_seed(vocabulary)

    def pick(*of: float) -> torch.Tensor:
        return torch.tensor(of)[torch.randint(len(of), (rows,), generator=generator)]

    faults = []
    for streams, last in ((1, False), (2, False), (1, True)):
        logits = 3 * torch.randn(rows, streams * vocabulary, generator=generator)
        logits[::3] = logits[::3].round()  # many ids are equally likely
        nucleus = pick(0.05, 0.3, 0.8, 0.95, 1)
        table = [pick(0, 0.5, 1), pick(1, 1.2, 2, 0.7), pick(0, 0.8, 1.3), pick(0, 0.05, 0.5), nucleus]
        table = torch.stack([*table, pick(0, 1, 3, 20, 10 * vocabulary)], 1)
        mask = torch.rand(rows + 2, vocabulary, generator=generator) < 0.2
        slots = torch.randperm(rows + 2, generator=generator)[:rows]
        fresh = torch.randint(-1, vocabulary, (rows,), generator=generator)
        u = torch.rand(rows, generator=generator, dtype=torch.float64)
        after = mask.clone()
        after[slots[fresh >= 0], fresh[fresh >= 0]] = True
        passing = torch.randint(-1, vocabulary, (rows,), generator=generator)
        spoken = after[slots] | (torch.arange(vocabulary) == passing[:, None])
        expected = sampling.choose(logits, RowValues(*table.unsqueeze(-1).unbind(1)), spoken, u[:, None], last)
        step = torch.stack([u, fresh.double(), passing.double()])
        mask = mask.to(device)
        out = choose_one_hot(
            logits.to(device), table.to(device), slots.int().to(device), step.to(device), mask, last
        ).cpu()
        if out.shape != (rows, vocabulary) or (out > float("-inf")).sum(-1).tolist() != [1] * rows:
            faults.append(f"{streams} streams, last {last}: not one token a row")
        wrong = (out.argmax(-1) != expected).nonzero().flatten().tolist()
        faults += [f"{streams} streams, last {last}, row {row}: {table[row].tolist()}" for row in wrong]
        if not torch.equal(mask.cpu(), after):
            faults.append(f"{streams} streams, last {last}: the mask")
    return faults


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON)
def test_kernel_by_the_interpreter() -> None:
    script = "from tests.test_sampling import kernel_differences as d; print(d('cpu', 40, 50) + d('cpu', 12, 777))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.gpu
def test_kernel() -> None:
    assert kernel_differences("cuda", 512, 8194) == []
