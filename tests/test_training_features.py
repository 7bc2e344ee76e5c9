"""Batches out of flat tensors, and weights that are carried."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training.features import Flat, batches
from training.weights import keep_weights, load_weights, warm_start


def flat() -> Flat:
    """Rows of 3, 1 and 5 frames; a value says its row and frame."""
    return Flat.of([torch.tensor([[10.0 * row + i] for i in range(n)]) for row, n in ((1, 3), (2, 1), (3, 5))])


def test_padded_rows_end_in_zeros() -> None:
    assert flat().padded(torch.tensor([2, 0]), 6)[..., 0].tolist() == [[30, 31, 32, 33, 34, 0], [10, 11, 12, 0, 0, 0]]
    assert flat().row(2)[:, 0].tolist() == [30, 31, 32, 33, 34]


def test_crops_stay_within_their_row() -> None:
    torch.manual_seed(0)
    rows = torch.tensor([0, 1, 2] * 20)
    zeros, repeated = (flat().crops(rows, 2, repeat=repeat)[..., 0] for repeat in (False, True))
    assert set(map(tuple, zeros[rows == 2].tolist())) == {(30, 31), (31, 32), (32, 33), (33, 34)}
    assert set(map(tuple, zeros[rows == 1].tolist())) == {(20, 0)}
    assert set(map(tuple, repeated[rows == 1].tolist())) == {(20, 20)}


def test_batches_hold_everything_once_within_the_budget() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(10, 200, 500)
    groups = batches(lengths, 1000, random)
    assert sorted(np.concatenate(groups).tolist()) == list(range(500))
    assert all(len(group) * lengths[group].max() <= 1000 for group in groups)
    padding = 1 - lengths.sum() / sum(len(group) * lengths[group].max() for group in groups)
    assert padding < 0.25
    assert [g.tolist() for g in batches(lengths, 1000, random)] != [g.tolist() for g in groups]


def test_kept_weights_start_another_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    first = nn.ModuleDict({"net": nn.Linear(4, 4), "heads": nn.Linear(4, 3)})
    keep_weights(tmp_path, first.state_dict(), {"size": 4})
    assert torch.equal(load_weights(tmp_path, "net.")["bias"], first["net"].bias)
    torch.testing.assert_close(load_weights(tmp_path, "net.")["weight"], first["net"].weight.data, rtol=1e-3, atol=1e-6)
    second = nn.ModuleDict({"net": nn.Linear(4, 4), "heads": nn.Linear(4, 5)})
    own = second["heads"].weight.clone()
    warm_start(argparse.Namespace(resume=True, out=tmp_path), second)
    assert torch.equal(second["net"].bias, first["net"].bias) and torch.equal(second["heads"].weight, own)
    assert "afresh: heads.weight, heads.bias" in capsys.readouterr().out
