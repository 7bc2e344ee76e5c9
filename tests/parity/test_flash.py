"""Block decoding against goldens of the published package on a small synthetic T3, alone and in one batch.

`oracle/make_flash.py` made them. Where something is drawn, both got the recipe's uniform numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from chatterbox_vllm.checkpoint.config import BlockDecoding, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.blocks import stage as module
from chatterbox_vllm.t3.blocks.stage import BlockStage
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.sampling import Sampling

from .conftest import Goldens, Parity
from .oracle import weights_recipe as recipe

# Logarithms of probabilities.
LOGITS_BOUND = 1e-4
PRIOR_BOUND = 1e-6
Case = dict[str, Any]


@pytest.fixture(scope="module")
def parity() -> Parity:
    return Parity("Flash, ")


@pytest.fixture(scope="module")
def facts(goldens: Goldens) -> Any:
    return goldens.json("t3_flash")


@pytest.fixture(scope="module")
def golden(goldens: Goldens) -> Any:
    return goldens.arrays("t3_flash")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def file(facts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = backbone_of(config_of(facts)).published_shapes(config_of(facts))
    tensors = recipe.state_dict({key: (shape, "float32") for key, shape in shapes.items()}, facts["component"])
    path = tmp_path_factory.mktemp("flash") / "t3_flash.safetensors"
    save_file(tensors, path)
    return path


def config_of(facts: Any, time_shift: float = 0.1, noise: float = 0.0) -> T3Config:
    return T3Config(**facts["config"], blocks=BlockDecoding(time_shift=time_shift, position_noise=noise))


@contextmanager
def opened(facts: Any, file: Path, device: torch.device, time_shift: float, noise: float = 0.0) -> Iterator[BlockStage]:
    options = T3Options(torch.float32, max_model_len=300, max_batch_size=16)
    stage = BlockStage(config_of(facts, time_shift, noise), Weights(file), options, device)
    yield stage
    assert stage.kv_blocks_in_use == 0
    stage.close()


def prompt_of(case: Case, facts: Any, file: Path, golden: Any) -> torch.Tensor:
    config = config_of(facts)
    builder = backbone_of(config).builder.from_weights(config, Weights(file))
    speaker, clip = torch.from_numpy(golden["speaker"]), torch.from_numpy(golden["clip"])[0]
    return builder.prompt(builder.conditioning(speaker, clip, 0.5), case["text_tokens"])


def sampling(case: Case) -> Sampling:
    return Sampling(case["cfg_weight"], case["temperature"], 0.0, 1.0, 0, 1.0, case["max_tokens"])


def recipe_draws(component: str, seeds: np.ndarray, first: np.ndarray, size: int) -> np.ndarray:
    """In place of `block_draws`; a request's seed is its case, and its full blocks took ten steps."""
    drawn = [
        recipe.uniform(f"{component}/draws{seed}/{step}", 2 * size).reshape(2, size)
        for seed, step in zip(seeds, first, strict=True)
    ]
    return np.stack(drawn, axis=1)


def speak(stage: BlockStage, prompts: dict[int, torch.Tensor], cases: list[Case]) -> dict[int, tuple[list[int], str]]:
    for number, prompt in prompts.items():
        stage.add(str(number), prompt, sampling(cases[number]), seed=number)
    said = {}
    while stage.unfinished:
        for output in stage.step():
            said[int(output.request_id)] = (list(output.token_ids), output.finish_reason)
    return said


@pytest.mark.parametrize(("time_shift", "drawn"), [(0.1, False), (3.0, False), (0.1, True)])
def test_tokens_are_the_published_ones_alone_and_in_a_batch(
    time_shift: float,
    drawn: bool,
    facts: Any,
    file: Path,
    device: torch.device,
    golden: Any,
    parity: Parity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = facts["cases"]
    seen: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    unmask = module.unmask

    def recorded(logits: torch.Tensor, masked: torch.Tensor, *rest: Any) -> Any:
        seen.append((logits, masked, rest[1]))
        return unmask(logits, masked, *rest)

    monkeypatch.setattr(module, "unmask", recorded)
    monkeypatch.setattr(module, "block_draws", partial(recipe_draws, facts["component"]))
    prompts = {
        number: prompt_of(case, facts, file, golden)
        for number, case in enumerate(cases)
        if case["time_shift"] == time_shift and (case["temperature"] > 0) == drawn
    }
    with opened(facts, file, device, time_shift, noise=float(drawn)) as stage:
        together = speak(stage, prompts, cases)
        for number, prompt in prompts.items():
            seen.clear()
            alone = speak(stage, {number: prompt}, cases)
            tokens, reason = alone[number]
            assert together[number] == (tokens, reason)
            case, stop = cases[number], facts["config"]["stop_speech_token"]
            spoken = tokens[:-1] if reason == "stop" else tokens
            parity.identical("T3 tokens, greedy and sampled, alone and in one batch", spoken, case["tokens"])
            assert (reason == "stop") == case["stopped"] and (tokens[-1] == stop) == case["stopped"]
            assert steps_of([bool(masked.any()) for _, masked, _ in seen]) == case["steps"]
            (both, _, values) = seen[0]
            conditional, other = both[:, 0]
            guided = (conditional + values.cfg_weight * (conditional - other)).log_softmax(-1)
            first = torch.from_numpy(golden[f"logits_{number}"])
            # Behind the end of a short block nothing is seen.
            parity.absolute(
                "first log probabilities of a piece, guided", guided[: len(first)].cpu(), first, LOGITS_BOUND
            )
    assert {reason for _, reason in together.values()} == {"stop", "length"} or time_shift == 3.0


def test_the_prior_is_the_published_one(
    facts: Any, file: Path, device: torch.device, golden: Any, parity: Parity
) -> None:
    with opened(facts, file, device, 0.1) as stage:
        parity.absolute("probabilities without text and voice", stage._prior.cpu(), golden["prior"], PRIOR_BOUND)


def steps_of(denoises: list[bool]) -> list[int]:
    """Steps of each block, where a step that only takes a block in stands between two."""
    counts = [0]
    for denoised in denoises:
        if denoised:
            counts[-1] += 1
        else:
            counts.append(0)
    return counts
