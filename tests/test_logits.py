"""T3's logits processors on their own: guidance weights by row, and the seeded draw."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from chatterbox_vllm.config import T3Config
from chatterbox_vllm.models.t3.logits import GuidanceProcessor, RepetitionPenalty, SeededDraw, uniforms
from chatterbox_vllm.models.t3.vllm_config import hf_config

VOCABULARY = 50
CPU = torch.device("cpu")


def engine_config() -> SimpleNamespace:
    fields = hf_config(T3Config(speech_vocab_size=VOCABULARY), streams=2, max_prompt=64, max_model_len=128)
    return SimpleNamespace(
        model_config=SimpleNamespace(hf_config=SimpleNamespace(t3=fields["t3"])),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
    )


def request(**extra: object) -> SamplingParams:
    return SamplingParams(extra_args=extra)


def update(size: int, added=(), removed=(), moved=()) -> BatchUpdate:
    rows = [(row, params, None, output) for row, params, output in added]
    return BatchUpdate(batch_size=size, added=rows, removed=list(removed), moved=list(moved))


def test_guidance_follows_its_request_through_the_batch() -> None:
    processor = GuidanceProcessor(engine_config(), CPU, False)
    torch.manual_seed(0)
    logits = torch.randn(3, 2 * VOCABULARY)
    conditional, unconditional = logits.split(VOCABULARY, dim=1)

    def guided(row: int, weight: float) -> torch.Tensor:
        return conditional[row] + weight * (conditional[row] - unconditional[row])

    processor.update_state(update(3, [(row, request(cfg_weight=w), []) for row, w in enumerate((0.0, 0.5, 1.5))]))
    torch.testing.assert_close(processor.apply(logits), torch.stack([guided(0, 0.0), guided(1, 0.5), guided(2, 1.5)]))
    processor.update_state(update(3, moved=[(0, 2, MoveDirectionality.SWAP)]))
    torch.testing.assert_close(processor.apply(logits), torch.stack([guided(0, 1.5), guided(1, 0.5), guided(2, 0.0)]))
    processor.update_state(update(2, removed=[0], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    torch.testing.assert_close(processor.apply(logits[:2]), torch.stack([guided(0, 0.0), guided(1, 0.5)]))


def penalized(logits: torch.Tensor, penalty: float, seen: set[int]) -> torch.Tensor:
    """The published rule, one row, token by token."""
    out = logits.clone()
    for token in seen:
        out[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    return out


def test_repetition_penalty_follows_its_request_through_the_batch() -> None:
    processor = RepetitionPenalty(engine_config(), CPU, False)
    outputs: dict[str, list[int]] = {"a": [], "b": [7, 7, 9], "c": [1]}  # b comes back after preemption
    penalties = {"a": 1.2, "b": 2.0, "c": 0.5}
    row_of = {"a": 0, "b": 1, "c": 2}
    start = 49
    torch.manual_seed(0)

    def check() -> None:
        logits = torch.randn(len(row_of), VOCABULARY)
        got = processor.apply(logits)
        for name, row in row_of.items():
            expected = penalized(logits[row], penalties[name], {start, *outputs[name]})
            torch.testing.assert_close(got[row], expected, rtol=0, atol=0)
        for name in row_of:
            outputs[name].append(int(torch.randint(0, 48, ())))

    def added(name: str) -> tuple:
        return row_of[name], request(repetition_penalty=penalties[name]), [start] * 5, outputs[name]

    processor.update_state(BatchUpdate(batch_size=3, removed=[], added=[added(n) for n in "abc"], moved=[]))
    for _ in range(4):
        check()
    # a leaves, c moves into its row, then d comes: slots are used again, marks are not.
    del row_of["a"]
    row_of["c"] = 0
    processor.update_state(
        BatchUpdate(batch_size=2, removed=[0], added=[], moved=[(2, 0, MoveDirectionality.UNIDIRECTIONAL)])
    )
    check()
    for n in range(12):
        name = f"d{n}"
        outputs[name], penalties[name], row_of[name] = [n], 1.5 + n / 10, 2
        processor.update_state(BatchUpdate(batch_size=3, removed=[], added=[added(name)], moved=[]))
        check()
        check()
        del row_of[name]
        processor.update_state(BatchUpdate(batch_size=2, removed=[2], added=[], moved=[]))
        row_of["b"], row_of["c"] = row_of["c"], row_of["b"]
        processor.update_state(BatchUpdate(batch_size=2, removed=[], added=[], moved=[(0, 1, MoveDirectionality.SWAP)]))
        check()


def test_draw_inverts_the_cumulative_distribution() -> None:
    processor = SeededDraw(engine_config(), CPU, False)
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(1))
    draws = (0.0, 0.3, 0.77, 0.999999)
    processor.update_state(update(4, [(row, request(uniforms=[u]), []) for row, u in enumerate(draws)]))
    cumulative = logits.double().softmax(-1).cumsum(-1).numpy()
    expected = [int(np.argmax(cumulative[row] > u)) for row, u in enumerate(draws)]
    out = processor.apply(logits.clone())
    assert out.argmax(-1).tolist() == expected
    assert (out > float("-inf")).sum(-1).tolist() == [1] * 4


def test_draws_have_the_distribution_they_are_drawn_from() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    processor = SeededDraw(engine_config(), CPU, False)
    count = 4000
    processor.update_state(update(count, [(row, request(seed=row), []) for row in range(count)]))
    drawn = processor.apply(probabilities.log().repeat(count, 1)).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / count
    assert (shares - probabilities).abs().max() < 0.03


def test_draw_depends_on_seed_and_step_alone() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(2))

    def token(rows: int, row: int, seed: int, output: list[int]) -> int:
        processor = SeededDraw(engine_config(), CPU, False)
        others = [(i, request(seed=1000 + i), []) for i in range(rows) if i != row]
        processor.update_state(update(rows, [*others, (row, request(seed=seed), output)]))
        return int(processor.apply(logits.repeat(rows, 1))[row].argmax())

    alone = [token(1, 0, 7, [0] * step) for step in range(20)]
    assert alone == [token(9, 5, 7, [0] * step) for step in range(20)]
    assert alone != [token(1, 0, 8, [0] * step) for step in range(20)]


def test_step_is_read_from_the_live_output() -> None:
    processor = SeededDraw(engine_config(), CPU, False)
    output: list[int] = []
    logits = torch.zeros(1, VOCABULARY)
    processor.update_state(update(1, [(0, request(seed=3), output)]))
    seen = []
    for _ in range(5):
        seen.append(int(processor.apply(logits.clone()).argmax()))
        output.append(seen[-1])
    expected = uniforms(np.full(5, 3, np.uint64), np.arange(5, dtype=np.uint64)) * VOCABULARY
    assert seen == expected.astype(int).tolist()


def test_nucleus_keeps_the_likeliest() -> None:
    processor = SeededDraw(engine_config(), CPU, False)
    logits = torch.tensor([0.05, 0.6, 0.25, 0.1]).log().repeat(200, 1)
    rows = [(row, request(seed=row, top_p=0.8 if row % 2 else 1.0), []) for row in range(200)]
    processor.update_state(update(200, rows))
    drawn = processor.apply(logits).argmax(-1)
    assert set(drawn[1::2].tolist()) == {1, 2}
    assert set(drawn[::2].tolist()) == {0, 1, 2, 3}


def test_uniform_is_uniform() -> None:
    seeds, steps = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(50, dtype=np.uint64), indexing="ij")
    values = uniforms(seeds, steps)
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.var() - 1 / 12) < 0.003
    # Neighbouring seeds and steps are unrelated.
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("processor", "params"),
    [
        (GuidanceProcessor, request(cfg_weight=-0.1)),
        (GuidanceProcessor, request(cfg_weight="0.5")),
        (GuidanceProcessor, request(cfg_weight=float("nan"))),
        (RepetitionPenalty, request(repetition_penalty=0)),
        (RepetitionPenalty, SamplingParams(repetition_penalty=1.2)),
        (SeededDraw, request(top_p=0)),
        (SeededDraw, request(seed=-1)),
        (SeededDraw, request(seed=1.5)),
        (SeededDraw, SamplingParams(max_tokens=3, extra_args={"uniforms": [0.1]})),
        (SeededDraw, SamplingParams(top_p=0.9)),
        (SeededDraw, SamplingParams(top_k=5)),
    ],
)
def test_bad_parameters_are_refused(processor: type, params: SamplingParams) -> None:
    with pytest.raises(ValueError):
        processor.validate_params(params)
