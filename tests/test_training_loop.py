"""Training loops end in time, and go on where they were."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn
from training import loop


def arguments(out: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    loop.add_arguments(parser, seconds=0.2)
    return parser.parse_args(["--out", str(out), "--device", "cpu", *more])


def parts() -> dict:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return {"model": model, "optimizer": loop.adamw(model, 0.1), "average": loop.Average(model, 0.9)}


def train(run: loop.Run, made: dict, steps: int) -> None:
    for _, _ in zip(range(steps), run.steps(), strict=False):
        made["model"](torch.ones(4, 3)).square().mean().backward()
        made["optimizer"].step()
        made["optimizer"].zero_grad()
        made["average"].update()


def test_a_resumed_run_equals_one_that_was_never_cut(tmp_path: Path) -> None:
    whole = parts()
    train(loop.Run(arguments(tmp_path / "whole", "--seconds", "60"), **whole), whole, 6)
    first = parts()
    run = loop.Run(arguments(tmp_path / "cut", "--seconds", "60"), **first)
    train(run, first, 3)
    run.save()
    second = parts()
    resumed = loop.Run(arguments(tmp_path / "cut", "--seconds", "60", "--resume"), **second)
    assert resumed.step >= 2
    train(resumed, second, 3)
    torch.testing.assert_close(second["model"].weight, whole["model"].weight, rtol=0, atol=0)
    state, expected = second["average"].module_state(), whole["average"].module_state()
    torch.testing.assert_close(state, expected, rtol=0, atol=0)


def test_it_ends_and_saves_by_itself(tmp_path: Path) -> None:
    made = parts()
    run = loop.Run(arguments(tmp_path, "--seconds", "0.1"), **made)
    for step in run.steps():
        run.note(loss=torch.tensor(float(step)))
    assert 0.1 <= run.spent < 5
    assert run.progress == 1.0
    assert loop.load_checkpoint(tmp_path)["step"] == run.step > 0
    assert '"loss"' in (tmp_path / "log.jsonl").read_text()


def test_large_checkpoints_come_in_small_files(tmp_path: Path) -> None:
    loop.save_checkpoint(tmp_path, {"big": torch.arange(5_000_000.0), "step": 1})
    sizes = [part.stat().st_size for part in (tmp_path / loop.CHECKPOINT).iterdir()]
    assert len(sizes) == 2 and max(sizes) < 16_000_000
    assert torch.equal(loop.load_checkpoint(tmp_path)["big"], torch.arange(5_000_000.0))


def test_a_broken_loss_stops_it(tmp_path: Path) -> None:
    run = loop.Run(arguments(tmp_path))
    run.note(loss=float("nan"))
    with pytest.raises(FloatingPointError, match="loss"):
        run.write_log()


def test_the_rate_rises_and_falls() -> None:
    rates = [loop.rate_at(p / 100, 1.0) for p in range(101)]
    assert rates[0] < 0.02 and max(rates) == rates[2] == 1.0 and abs(rates[100]) < 1e-9
