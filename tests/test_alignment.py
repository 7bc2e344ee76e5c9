"""The rules by which a text's attention holds its end back or brings it about, against the published analyzer's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm.t3.alignment import (
    STATE_WIDTH,
    completed_at,
    follow,
    has_started,
    repeats_a_token,
    text_position,
)

from .parity.oracle.alignment import MADE_UP, RECORDED, Scenario

GOLDENS = Path(__file__).parent / "parity" / "goldens"
PUBLISHED = json.loads((GOLDENS / "alignment.json").read_text())
ANALYZER = json.loads((GOLDENS / "analyzer_017.json").read_text())["scenarios"]


def followed(scenarios: Sequence[Scenario]) -> Iterator[tuple[Scenario, list[Any]]]:
    """All in one batch, each as long as it lasts: the rows of `make_alignment.py`, step by step."""
    widest, sizes = max(s.size for s in scenarios), torch.tensor([s.size for s in scenarios])
    rows = torch.full((len(scenarios), max(s.steps for s in scenarios) + 1, widest), 7.0)  # of no text
    for own, scenario in zip(rows, scenarios, strict=True):
        own[: scenario.steps + 1, : scenario.size] = torch.from_numpy(scenario.attention())
    state, started = torch.zeros(len(scenarios), STATE_WIDTH), torch.zeros(len(scenarios), dtype=torch.bool)
    strongest = rows[:, 0, 0]  # in the first two rows nothing counts but the first text token
    previous = torch.where(torch.arange(widest) > 0, 0.0, rows[:, 0])
    for step in range(rows.shape[1] - 1):
        state, said = follow(state, rows[:, step + 1], sizes, torch.full_like(sizes, step))
        row = torch.where(torch.arange(widest) > step, 0.0, rows[:, step + 1])
        strongest = torch.maximum(strongest, row[:, :4].amax(1))
        started = started | has_started(strongest, torch.stack([previous, row], 1), sizes)
        previous = row
        for i, scenario in enumerate(scenarios):
            if step < scenario.steps:
                token = repeats_a_token(scenario.tokens()[: step + 1])
                reasons = [bool(said.long_tail[i]), bool(said.repetition[i]), token]
                end = "forced" if any(reasons) else "held" if said.unfinished[i] else "none"
                at = [int(text_position(state)[i]), bool(started[i]), int(completed_at(state)[i])]
                yield scenario, [end, *reasons, *at]


def by_name(scenarios: Sequence[Scenario]) -> dict[str, list[list[Any]]]:
    traces: dict[str, list[list[Any]]] = {scenario.name: [] for scenario in scenarios}
    for scenario, row in followed(scenarios):
        traces[scenario.name].append(row)
    return traces


@pytest.mark.parametrize("scenario", MADE_UP, ids=lambda scenario: scenario.name)
def test_every_rule_is_the_published_one(scenario: Scenario) -> None:
    assert by_name([scenario])[scenario.name] == PUBLISHED[scenario.name]


def test_in_a_batch_rows_are_what_they_are_alone() -> None:
    assert by_name(MADE_UP) == PUBLISHED


def test_recorded_traces() -> None:
    """Of the attention behind these it is known only what shows in them; the repeated token is at one step of one."""
    names = {"suppressed": "held", "none": "none", "forced_eos": "forced"}
    traces = by_name(RECORDED)
    assert set(traces) == set(ANALYZER)
    for name, rows in traces.items():
        for step, (row, wanted) in enumerate(zip(rows, ANALYZER[name], strict=True)):
            end, position, started, complete, since = wanted
            if (name, step) == ("repeat_tok", 11):
                assert repeats_a_token([6561, *range(10), 9]) and end == "forced_eos"
                end = "suppressed"
            assert (row[0], *row[4:]) == (names[end], position, started, since or 0), (name, step)
            assert complete == (since is not None)


def test_a_row_that_was_taken_in_leaves_its_state_as_it_is() -> None:
    rows = torch.from_numpy(Scenario("normal").attention())
    size = torch.tensor([20])
    state = torch.zeros(1, STATE_WIDTH)
    for step in range(45):
        state, _ = follow(state, rows[None, step + 1], size, torch.tensor([step]))
        # A prompt that is not whole, and steps that are computed again after preemption.
        for seen in {-9, 0, step // 2, step}:
            again, _ = follow(state, torch.rand(1, 20), size, torch.tensor([seen]))
            assert torch.equal(again, state)
    assert int(completed_at(state)) == 31


@pytest.mark.parametrize("size", [3, 4, 5])
def test_of_a_short_text_the_end_is_not_held_and_nothing_is_a_repetition(size: int) -> None:
    """The published analyzer fails of these when they are said: it takes the maximum of no columns."""
    state, sizes = torch.zeros(1, STATE_WIDTH), torch.tensor([size])
    for step in range(30):
        row = torch.nn.functional.one_hot(torch.tensor([0 if step % 2 else size - 1]), 8).float()
        state, said = follow(state, row, sizes, torch.tensor([step]))
        assert not said.unfinished and not said.repetition
    assert said.long_tail


def test_recorded_speech_repeats_tokens() -> None:
    """Why the engine does not end speech at a repeated token: it would end each of these clips within three seconds."""
    clips = np.load(GOLDENS / "ref.npz")
    spoken = [clips[name].ravel().tolist() for name in ("ref_prompt_token", "short_prompt_token", "long33s_tokens")]
    for tokens in spoken:
        assert any(repeats_a_token(tokens[:n]) for n in range(75))
    pairs = [(a, b) for tokens in spoken for a, b in zip(tokens, tokens[1:], strict=False)]
    assert 0.03 < sum(a == b for a, b in pairs) / len(pairs) < 0.05
