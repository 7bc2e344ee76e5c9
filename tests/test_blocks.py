"""Filling in blocks: schedule, choice of positions, pages, and the stage with made-up weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm import ConfigError, DeviceError, GenerationError
from chatterbox_vllm.checkpoint.config import BlockDecoding, ModelConfig, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.babble_flash import BABBLE_FLASH_CONFIG
from chatterbox_vllm.families.flash import FLASH
from chatterbox_vllm.t3.blocks import stage as module
from chatterbox_vllm.t3.blocks.pages import PAGE, Pages
from chatterbox_vllm.t3.blocks.stage import BlockStage
from chatterbox_vllm.t3.blocks.unmasking import StepValues, block_draws, schedule, unmask
from chatterbox_vllm.t3.kv_cache import kv_bytes_per_position
from chatterbox_vllm.t3.options import T3Options, T3Output
from chatterbox_vllm.t3.sampling import Sampling

CONFIG = BABBLE_FLASH_CONFIG.t3
CPU = torch.device("cpu")
SAMPLING = Sampling(1.0, 0.6, 0.0, 1.0, 0, 1.0, 60)


@pytest.fixture
def stage(flash_babbler: Path) -> Iterator[BlockStage]:
    options = T3Options(torch.float32, max_model_len=400, max_batch_size=4)
    opened = BlockStage(CONFIG, Weights(flash_babbler / FLASH.t3), options, CPU)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def prompt(flash_babbler: Path) -> torch.Tensor:
    builder = FLASH.read_prompt_builder(CONFIG, Weights(flash_babbler / FLASH.t3))
    conditioning = builder.conditioning(torch.ones(1, 256), torch.arange(150), 0.5)
    return builder.prompt(conditioning, [40 + i % 50 for i in range(40)])


def drain(stage: BlockStage) -> list[T3Output]:
    outputs = []
    while stage.unfinished:
        outputs += stage.step()
    return outputs


def test_the_published_schedule() -> None:
    blocks = BlockDecoding()
    assert schedule(blocks, 16) == (1, 1, 1, 1, 1, 2, 2, 2, 2, 3)
    for length in range(1, 17):
        assert sum(schedule(blocks, length)) == length and len(schedule(blocks, length)) == blocks.steps
    assert schedule(BlockDecoding(schedule_shift=1.0, steps=4), 16) == (4, 4, 4, 4)
    assert schedule(BlockDecoding(steps=1), 16) == (16,)


def values(step: int, least: int, temperature: float = 0.6, weight: float = 0.0) -> StepValues:
    return StepValues(
        torch.tensor([[weight]]), torch.tensor([[temperature]]), torch.tensor([[step]]), torch.tensor([[least]])
    )


def logits(*rows: list[float]) -> torch.Tensor:
    """[2, 1, size, V] logarithms of probabilities, the same in both streams."""
    return torch.tensor(rows).log().expand(2, 1, -1, -1)


def test_the_surest_positions_go_first_and_what_is_likely_anyway_is_not_sure() -> None:
    blocks = BlockDecoding(steps=4, time_shift=0.0, position_noise=0.0)
    likely = logits([0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4])
    prior, masked = torch.tensor([0.9, 0.05, 0.05]), torch.ones(1, 3, dtype=torch.bool)
    u = torch.full((2, 1, 3), 0.5, dtype=torch.float64)
    tokens, taken = unmask(likely, masked, prior, values(0, 1, 0.0), u, blocks)
    assert tokens.tolist() == [[0, 1, 2]] and taken.tolist() == [[False, True, False]]
    masked[0, 1] = False
    _, taken = unmask(likely, masked, prior, values(1, 1, 0.0), u, blocks)
    assert taken.tolist() == [[False, False, True]]
    _, taken = unmask(likely, masked, prior, values(3, 0, 0.0), u, blocks)
    assert taken.tolist() == [[True, False, True]]  # the last step leaves nothing


@pytest.mark.parametrize("time_shift", [0.1, 1.0, 3.0])
def test_the_quantile_is_torchs_own(time_shift: float) -> None:
    blocks = BlockDecoding(time_shift=time_shift, position_noise=1.0)
    generator = torch.Generator().manual_seed(1)
    for step in range(blocks.steps - 1):
        likely = torch.randn(2, 1, 16, 50, generator=generator).log_softmax(-1)
        masked = torch.rand(1, 16, generator=generator) < 0.7
        u = torch.rand(2, 1, 16, generator=generator, dtype=torch.float64)
        prior = torch.full((50,), 0.02)
        tokens, taken = unmask(likely, masked, prior, values(step, 1), u, blocks)
        scores = likely[0, 0].gather(1, tokens[0, :, None])[:, 0] - math.log(0.02) - (-u[1, 0].log()).log().float()
        scores = scores[masked[0]]
        share = max(0.0, 1 - time_shift * (step + 1) / blocks.steps)
        expected = int((scores >= torch.quantile(scores, share)).sum())
        assert int(taken.sum()) == max(1, expected) and not (taken & ~masked).any()


def test_draws_belong_to_a_seed_and_a_step() -> None:
    def draws(*pairs: tuple[int, int]) -> np.ndarray:
        seeds, steps = (np.array(column, dtype=np.uint64) for column in zip(*pairs, strict=True))
        return block_draws(seeds, steps, 16)

    both = draws((5, 0), (2**63 - 1, 7))
    assert both.shape == (2, 2, 16) and np.array_equal(both[:, :1], draws((5, 0)))
    several = draws(*((5, step) for step in range(20)))
    assert len(np.unique(several)) == several.size and several.min() >= 0 and several.max() < 1


def test_pages_are_dealt_out_and_come_back() -> None:
    pages = Pages(CONFIG, 5 * PAGE * kv_bytes_per_position(CONFIG, 4), torch.float32, CPU)
    first, second = pages.take(PAGE + 1), pages.take(3 * PAGE)
    assert first is not None and second is not None and pages.take(1) is None and pages.in_use == 5
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(5 * PAGE))
    pages.give_back(first)
    third = pages.take(2 * PAGE)
    assert third is not None
    k, v = torch.randn(2, 2 * 2, CONFIG.num_heads, 3, CONFIG.head_dim)
    places = torch.stack([third[4:7], second[:3]])
    pages.write(1, places, k, v)
    for got, put in zip(pages.read(1, places), (k, v), strict=True):
        assert torch.equal(got, put)


def test_step_counts_follow_the_schedule(
    stage: BlockStage, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []

    def recorded(logits: torch.Tensor, masked: torch.Tensor, *rest: Any) -> Any:
        left.append(int(masked.sum()))
        return unmask(logits, masked, *rest)

    monkeypatch.setattr(module, "unmask", recorded)
    stage.add("a", prompt, replace(SAMPLING, max_tokens=40), seed=3)
    (output,) = drain(stage)
    assert output.finish_reason == "length" and len(output.token_ids) == 40
    block = [16, 15, 14, 13, 12, 11, 9, 7, 5, 3]
    # Between two blocks stands the step that takes the first one in.
    assert left[:22] == [*block, 0, *block, 0]
    # Of a shorter block the schedule begins with nothing, and the best position is taken all the same.
    counts = [max(1, count) for count in schedule(CONFIG.blocks, 8)]
    assert left[22:] == [8 - sum(counts[:step]) for step in range(10) if sum(counts[:step]) < 8]


def test_a_seed_says_the_same_alone_and_among_others(stage: BlockStage, prompt: torch.Tensor) -> None:
    asked = {
        str(seed): (prompt[seed:], replace(SAMPLING, max_tokens=50 + seed, cfg_weight=seed % 3, temperature=0.7))
        for seed in range(7)
    }

    def speak(*names: str) -> dict[str, T3Output]:
        for name in names:
            stage.add(name, *asked[name], seed=int(name))
        return {output.request_id: output for output in drain(stage)}

    together = speak(*asked)  # seven in a batch of four: some begin while others are amid a block
    assert len({output.token_ids for output in together.values()}) == 7
    for name in asked:
        assert speak(name)[name] == together[name]
    assert stage.kv_blocks_in_use == 0


def test_finished_blocks_are_told(stage: BlockStage, prompt: torch.Tensor) -> None:
    stage.add("whole", prompt, SAMPLING, seed=1)
    (whole,) = drain(stage)
    stage.add("told", prompt, SAMPLING, seed=1, told_every=1)
    told = drain(stage)
    assert tuple(token for output in told for token in output.token_ids) == whole.token_ids
    assert [output.finish_reason for output in told] == [None] * (len(told) - 1) + [whole.finish_reason]
    assert [len(output.token_ids) for output in told[:-1]] == [16] * (len(told) - 1) and len(told) > 2


def test_an_end_of_speech_ends_it_and_what_was_never_filled_in_is_left_out(
    stage: BlockStage, prompt: torch.Tensor
) -> None:
    stop = CONFIG.stop_speech_token
    stage.add("a", prompt, replace(SAMPLING, max_tokens=300), seed=1)
    (output,) = drain(stage)
    assert output.finish_reason == "stop" and output.token_ids[-1] == stop
    assert all(token < CONFIG.start_speech_token for token in output.token_ids[:-1])


def test_memory_is_bounded_and_requests_wait_for_it(flash_babbler: Path, prompt: torch.Tensor) -> None:
    room = 20 * PAGE * kv_bytes_per_position(CONFIG, 4)
    options = T3Options(torch.float32, max_model_len=300, max_batch_size=8, kv_cache_bytes=room)
    stage = BlockStage(CONFIG, Weights(flash_babbler / FLASH.t3), options, CPU)
    for name in "abcd":
        stage.add(name, prompt, SAMPLING, seed=1)  # 77 rows and 60 tokens: nine pages
    most, outputs = 0, []
    while stage.unfinished:
        outputs += stage.step()
        most = max(most, stage.kv_blocks_in_use)
    assert most == 18 and len({output.token_ids for output in outputs}) == 1 and len(outputs) == 4
    stage.close()
    with pytest.raises(DeviceError, match="needs 20: raise the one or lower the other"):
        small = replace(options, kv_cache_bytes=room - 1)
        BlockStage(CONFIG, Weights(flash_babbler / FLASH.t3), small, CPU)


def test_dropped_requests_leave_nothing(
    stage: BlockStage, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcdef":
        stage.add(name, prompt, SAMPLING, seed=1)
    stage.step()
    assert stage.kv_blocks_in_use > 0
    stage.abort(["a", "f", "unknown"])
    assert {output.request_id for output in drain(stage)} == {*"bcde"} and stage.kv_blocks_in_use == 0
    stage.add("g", prompt, SAMPLING, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "unmask", lambda *_: 1 / 0)
        with pytest.raises(GenerationError, match="ZeroDivisionError.*load the model anew"):
            stage.step()
    assert not stage.unfinished and stage.kv_blocks_in_use == 0


def test_what_it_does_not_do_is_refused(stage: BlockStage, flash_babbler: Path, prompt: torch.Tensor) -> None:
    weights = Weights(flash_babbler / FLASH.t3)
    refused = [
        ({"deterministic": True}, "deterministic=True is not to be had"),
        ({"teacher_forcing": True}, "teacher_forcing=True is not to be had"),
        ({"quantization": "fp8", "dtype": torch.bfloat16}, "take bnb-4bit or bnb-8bit"),
        ({"max_model_len": 10_000}, "more than the model can ever use"),
    ]
    for given, message in refused:
        with pytest.raises(ConfigError, match=message):
            BlockStage(CONFIG, weights, T3Options(**{"dtype": torch.float32} | given), CPU)
    with pytest.raises(ConfigError, match="give a seed"):
        stage.add("a", prompt, SAMPLING, 1, uniforms=[0.5] * 60)
    with pytest.raises(ConfigError, match="must be 512 wide"):
        stage.add("a", prompt[:, :256], SAMPLING, 1)
    with pytest.raises(ConfigError, match="exceed max_model_len=400"):
        stage.add("a", prompt, replace(SAMPLING, max_tokens=390), 1)
    assert not stage.unfinished and not stage.options.cuda_graphs


def test_a_configuration_says_how_it_decodes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(FLASH.config.to_json())
    assert ModelConfig.from_file(tmp_path / "config.json") == FLASH.config
    assert '"blocks"' not in ModelConfig().to_json() and T3Config().speech_embeddings == 8194
    (tmp_path / "config.json").write_text(FLASH.config.to_json().replace('"block_size": 16', '"block_size": 0'))
    with pytest.raises(ConfigError, match="block_size"):
        ModelConfig.from_file(tmp_path / "config.json")
