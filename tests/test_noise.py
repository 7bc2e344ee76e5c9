"""S3Gen's noise: a number depends on the seed and its own place alone, and the numbers are normal."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatterbox_vllm.s3gen import noise
from chatterbox_vllm.s3gen.noise import GENERATED, PROMPT, SOURCE, NoiseSource, S3GenNoise, normal, normal_rows

from .reasons import NO_TRITON

MANY = 1 << 18
SOURCE_OF_NOISE = NoiseSource(mels=8, harmonics=2, samples_per_frame=5, device=torch.device("cpu"))


def test_the_integers_are_those_of_splitmix64() -> None:
    # The reference implementation's first outputs from the state 1234567.
    key = torch.tensor([1234567])
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
    ]
    assert [int(word) % 2**64 for word in noise._words(key, 0, 4)[0]] == expected
    assert [int(word) % 2**64 for word in noise._words(key, 2, 2)[0]] == expected[2:]


def test_a_rendering_that_is_cut_short_has_the_first_part_of_the_noise() -> None:
    whole = SOURCE_OF_NOISE.utterance(7, prompt_frames=6, frames=40)
    short = SOURCE_OF_NOISE.utterance(7, prompt_frames=6, frames=13)
    assert torch.equal(short.z, whole.z[:, :19])
    assert torch.equal(short.source, whole.source[:, :65])
    assert torch.equal(short.phase, whole.phase)


def test_generated_frames_have_their_noise_behind_any_prompt() -> None:
    long, short = (SOURCE_OF_NOISE.utterance(7, frames, 20) for frames in (9, 4))
    assert torch.equal(long.z[:, 9:], short.z[:, 4:]) and torch.equal(long.z[:, :4], short.z[:, :4])
    assert torch.equal(long.source, short.source)


@pytest.mark.parametrize("first", [0, 1, 6, 17])
def test_any_stretch_of_frames_can_be_drawn_alone(first: int) -> None:
    whole, part = SOURCE_OF_NOISE.draw(3, 0, 40), SOURCE_OF_NOISE.draw(3, first, 11)
    assert torch.equal(part.z, whole.z[:, first : first + 11])
    assert torch.equal(part.source, whole.source[:, 5 * first : 5 * (first + 11)])
    assert torch.equal(part.phase, whole.phase)


def test_no_two_draws_share_numbers() -> None:
    def numbers(drawn: S3GenNoise) -> torch.Tensor:
        return torch.cat([drawn.z.flatten(), drawn.source.flatten(), drawn.phase[1:]])

    draws = [numbers(SOURCE_OF_NOISE.utterance(seed, 5, 30)) for seed in (0, 1, 2, 2**63 - 1)]
    together = torch.cat(draws)
    assert len(together.unique()) > 0.999 * len(together)
    assert torch.equal(draws[2], numbers(SOURCE_OF_NOISE.utterance(2, 5, 30)))


def test_phases_are_uniform_and_the_fundamental_has_none() -> None:
    many = NoiseSource(1, 4000, 1, torch.device("cpu")).draw(1, 0, 1).phase
    assert many[0] == 0 and bool((many.abs() <= math.pi).all())
    assert abs(many.mean()) < 0.1 and abs(many.std() - 2 * math.pi / math.sqrt(12)) < 0.05


def test_the_numbers_are_normal() -> None:
    x = normal(11, SOURCE, 1, 0, MANY).double()[0]
    # Bounds are five standard errors of each figure.
    assert abs(x.mean()) < 5 / math.sqrt(MANY)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / MANY)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / MANY)
    assert abs((x**4).mean() - 3) < 5 * math.sqrt(96 / MANY)
    # Kolmogorov and Smirnov's distance; 1.95 / sqrt(n) is exceeded once in a thousand.
    cumulative = 0.5 * (1 + torch.erf(x.sort().values / math.sqrt(2)))
    assert (cumulative - (torch.arange(MANY) + 0.5) / MANY).abs().max() < 1.95 / math.sqrt(MANY)
    assert 4.2 < x.abs().max() < 6.8


def test_channels_frames_seeds_and_uses_are_independent() -> None:
    bound = 5.5 / math.sqrt(MANY // 8)
    drawn = ((5, GENERATED, 8), (6, GENERATED, 2), (5, SOURCE, 2))
    channels = torch.cat([normal(seed, use, count, 0, MANY // 8) for seed, use, count in drawn])
    correlations = torch.corrcoef(channels).fill_diagonal_(0)
    assert correlations.abs().max() < bound
    # Of squares, too: the cosine and the sine of a pair have their radius in common.
    assert torch.corrcoef(channels.square()).fill_diagonal_(0).abs().max() < bound
    x = channels[0]
    for distance in (1, 2, 3, 64):
        pair = torch.stack([x[:-distance], x[distance:]])
        assert abs(torch.corrcoef(pair)[0, 1]) < bound and abs(torch.corrcoef(pair.square())[0, 1]) < bound


def largest_difference_of_kernel(device: str) -> float:
    from chatterbox_vllm.s3gen import noise_kernel

    largest = 0.0
    for seed, first, count in ((0, 0, 5), (1, 3, 7), (7, 4, 1), (2**63 - 1, 7, 2100), (5, 2**33 + 1, 10)):
        expected = normal(seed, SOURCE, 3, first, count)
        found = noise_kernel.normal(seed, SOURCE, 3, first, count, torch.device(device)).cpu()
        assert found.shape == expected.shape
        largest = max(largest, float((found - expected).abs().max()))
    for count in (1, 7, 2100):
        seeds, uses, firsts = torch.tensor([[0, 2**63 - 1, 5] * 4, [SOURCE, GENERATED, PROMPT] * 4, [0, 7, 2**33] * 4])
        rows = zip(seeds.tolist(), uses.tolist(), firsts.tolist(), strict=True)
        expected = torch.stack([normal(*row[:2], 3, row[2], count) for row in rows])
        on_device = (table.to(device) for table in (seeds, uses, firsts))
        found = noise_kernel.normal_rows(*on_device, 3, count).cpu()
        largest = max(largest, float((found - expected).abs().max()))
    return largest


def test_rows_of_their_own_seeds_uses_and_places_are_those_drawn_alone() -> None:
    seeds, uses, firsts = [3, 2**63 - 1, 0], [SOURCE, GENERATED, PROMPT], [5, 0, 2**33]
    tables = [torch.tensor(table) for table in (seeds, uses, firsts)]
    for count in (1, 6, 3000):
        drawn = normal_rows(*tables, 4, count)
        for row, seed, use, first in zip(drawn, seeds, uses, firsts, strict=True):
            assert torch.equal(row, normal(seed, use, 4, first, count))
    phases = SOURCE_OF_NOISE.phases(tables[0])
    assert all(torch.equal(row, SOURCE_OF_NOISE.phase(seed)) for row, seed in zip(phases, seeds, strict=True))
    assert tables[0].tolist() == seeds


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON)
def test_kernel_by_the_interpreter() -> None:
    script = "from tests.test_noise import largest_difference_of_kernel as d; import json; print(json.dumps(d('cpu')))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) < 1e-5


@pytest.mark.gpu
def test_numbers_are_the_same_on_a_gpu() -> None:
    assert largest_difference_of_kernel("cuda") < 1e-5
    assert (normal(3, SOURCE, 4, 1, 1000, "cuda").cpu() - normal(3, SOURCE, 4, 1, 1000)).abs().max() < 1e-5
