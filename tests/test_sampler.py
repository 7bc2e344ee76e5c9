"""T3's sampler as vLLM calls it: rows come, move and go, and every request keeps its own values and its own past."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.t3.draws import uniforms
from chatterbox_vllm.t3.vllm.config import hf_config
from chatterbox_vllm.t3.vllm.sampler import SpeechSampler

VOCABULARY = 50
START = 49
CPU = torch.device("cpu")


def make_sampler(slots: int = 4, config: T3Config | None = None) -> SpeechSampler:
    t3 = replace(config or T3Config(), speech_vocab_size=VOCABULARY)
    fields = hf_config(t3, t3.guidance_streams, max_prompt=64, max_model_len=128)
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(t3_sampling=fields["t3_sampling"])),
        scheduler_config=SimpleNamespace(max_num_seqs=slots),
    )
    return SpeechSampler(config, CPU, False)


def request(**extra: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, extra_args=extra)


def update(size: int, added=(), removed=(), moved=()) -> BatchUpdate:
    rows = [(row, params, [START] * 5, output) for row, params, output in added]
    return BatchUpdate(batch_size=size, added=rows, removed=list(removed), moved=list(moved))


def expected_token(logits: torch.Tensor, weight: float, penalty: float, seen: set[int]) -> int:
    """The published rules for one greedy row, token by token."""
    conditional, unconditional = logits.split(VOCABULARY)
    out = conditional + weight * (conditional - unconditional)
    for token in seen:
        out[token] = out[token] * penalty if out[token] < 0 else out[token] / penalty
    return int(out.argmax())


def test_every_request_keeps_its_values_and_its_past() -> None:
    sampler = make_sampler()
    outputs: dict[str, list[int]] = {"a": [], "b": [7, 7, 9], "c": [1]}  # b comes back after preemption
    values = {"a": (0.0, 1.2), "b": (0.5, 2.0), "c": (1.5, 0.5)}
    row_of = {"a": 0, "b": 1, "c": 2}
    generator = torch.Generator().manual_seed(0)

    def check() -> None:
        logits = torch.randn(len(row_of), 2 * VOCABULARY, generator=generator)
        got = sampler.apply(logits)
        assert (got > float("-inf")).sum(-1).tolist() == [1] * len(row_of)
        for name, row in row_of.items():
            token = expected_token(logits[row], *values[name], {START, *outputs[name]})
            assert int(got[row].argmax()) == token, name
            outputs[name].append(token)

    def added(name: str) -> tuple:
        weight, penalty = values[name]
        return row_of[name], request(cfg_weight=weight, repetition_penalty=penalty, temperature=0), outputs[name]

    sampler.update_state(update(3, [added(n) for n in "abc"]))
    for _ in range(4):
        check()
    # a leaves, c moves into its row, then d comes: slots are used again, marks are not.
    del row_of["a"]
    row_of["c"] = 0
    sampler.update_state(update(2, removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    check()
    for n in range(12):
        name = f"d{n}"
        outputs[name], values[name], row_of[name] = [n], (n / 10, 1.5 + n / 10), 2
        sampler.update_state(update(3, [added(name)]))
        check()
        check()
        del row_of[name]
        sampler.update_state(update(2, removed=[2]))
        row_of["b"], row_of["c"] = row_of["c"], row_of["b"]
        sampler.update_state(update(2, moved=[(0, 1, MoveDirectionality.SWAP)]))
        check()


def test_where_the_penalty_comes_last_start_of_speech_bears_it_before_the_first_token_alone() -> None:
    sampler = make_sampler(config=T3Config(backbone="gpt2", guidance_streams=1, penalty_last=True))
    fresh: list[int] = []
    back = [7]  # after preemption
    rows = [(i, request(repetition_penalty=10.0, temperature=0), output) for i, output in enumerate((fresh, back))]
    sampler.update_state(update(2, rows))
    logits = torch.zeros(2, VOCABULARY)
    logits[:, START], logits[:, 7], logits[:, 8] = 3.0, 2.0, 1.0
    assert sampler.apply(logits).argmax(-1).tolist() == [7, START]
    fresh.append(7)
    assert sampler.apply(logits).argmax(-1).tolist() == [START, START]
    fresh.append(START)  # said, it is as any other
    assert sampler.apply(logits).argmax(-1).tolist() == [8, START]


def test_a_token_that_vllm_throws_away_is_not_spoken() -> None:
    sampler = make_sampler()
    output: list[int] = []
    sampler.update_state(update(1, [(0, request(repetition_penalty=1000.0, temperature=0, cfg_weight=0), output)]))
    logits = torch.zeros(1, 2 * VOCABULARY)
    logits[0, 5], logits[0, 6] = 2.0, 1.0
    # A prompt that is taken in by parts is sampled after every part; only the last draw is kept.
    assert [int(sampler.apply(logits).argmax()) for _ in range(3)] == [5, 5, 5]
    output.append(5)
    assert int(sampler.apply(logits).argmax()) == 6


def test_draw_depends_on_seed_and_step_alone() -> None:
    logits = torch.randn(1, 2 * VOCABULARY, generator=torch.Generator().manual_seed(2))

    def token(rows: int, row: int, seed: int, output: list[int]) -> int:
        sampler = make_sampler(rows)
        others = [(i, request(seed=1000 + i), []) for i in range(rows) if i != row]
        sampler.update_state(update(rows, [*others, (row, request(seed=seed), output)]))
        return int(sampler.apply(logits.repeat(rows, 1))[row].argmax())

    alone = [token(1, 0, 7, [0] * step) for step in range(20)]
    assert alone == [token(9, 5, 7, [0] * step) for step in range(20)]
    assert alone != [token(1, 0, 8, [0] * step) for step in range(20)]


def test_step_is_read_from_the_live_output() -> None:
    sampler = make_sampler()
    output: list[int] = []
    sampler.update_state(update(1, [(0, request(seed=3), output)]))
    for _ in range(5):
        output.append(int(sampler.apply(torch.zeros(1, 2 * VOCABULARY)).argmax()))
    expected = uniforms(np.full(5, 3, np.uint64), np.arange(5, dtype=np.uint64)) * VOCABULARY
    assert output == expected.astype(int).tolist()


def test_given_draws_and_a_nucleus_in_one_batch_with_others() -> None:
    sampler = make_sampler()
    logits = torch.full((2, 2 * VOCABULARY), -50.0)
    logits[:, :4] = logits[:, VOCABULARY : VOCABULARY + 4] = torch.tensor([0.05, 0.6, 0.25, 0.1]).log()
    draws = [0.0, 0.7, 0.72, 0.999]
    outputs: tuple[list[int], list[int]] = ([], [])
    rows = [(0, request(uniforms=draws, top_p=0.8), outputs[0]), (1, request(uniforms=draws), outputs[1])]
    sampler.update_state(update(2, rows))
    for _ in draws:
        for output, token in zip(outputs, sampler.apply(logits).argmax(-1).tolist(), strict=True):
            output.append(token)
    assert outputs == ([1, 1, 2, 2], [0, 2, 2, 3])


def test_logits_of_other_rows_than_it_was_told_of_are_an_error() -> None:
    sampler = make_sampler()
    sampler.update_state(update(1, [(0, request(), [])]))
    for rows in (0, 2):
        with pytest.raises(GenerationError, match=f"told of 1 requests and got the logits of {rows}"):
            sampler.apply(torch.randn(rows, 2 * VOCABULARY))


@pytest.mark.parametrize(
    "params",
    [
        request(cfg_weight=-0.1),
        request(cfg_weight="0.5"),
        request(cfg_weight=float("nan")),
        request(cfg_weight=float("inf")),
        request(repetition_penalty=0),
        request(temperature=-1),
        request(min_p=1.1),
        request(top_p=0),
        request(top_k=-1),
        request(top_k=1.5),
        request(seed=-1),
        request(seed=1.5),
        SamplingParams(temperature=0.0, repetition_penalty=1.2),
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=0.0, max_tokens=3, extra_args={"uniforms": [0.1]}),
    ],
)
def test_bad_parameters_are_refused(params: SamplingParams) -> None:
    with pytest.raises(ValueError):
        SpeechSampler.validate_params(params)
    SpeechSampler.validate_params(request(cfg_weight=0, temperature=0, top_p=1, min_p=1, seed=2**64 - 1))
