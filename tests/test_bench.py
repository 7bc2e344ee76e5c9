"""`chatterbox-vllm bench` on the babbling model: every part runs, and the results are written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm.bench.texts import batch_sizes, text_for
from chatterbox_vllm.cli import main
from chatterbox_vllm.text.split import split_text

TEXT = "This is the first sentence of a short text. And this is the second one, which is the last."


def test_every_part(babbler: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    command = ["bench", "--model", babbler, "--text", tmp_path / "text.txt", "--json", tmp_path / "out.json"]
    settings = ["--lengths", 1, "--tokens", 30, "--repeats", 1, "--steps", 2, "--no-watermark", "--tier", 12]
    settings += ["--max-batch-size", 2]
    assert main([str(a) for a in command + settings]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["device"] == "cpu" and results["weights"] == "synthetic" and results["vllm"]
    assert results["settings"]["steps"] == 2 and results["settings"]["quantization"] == "nothing quantized"
    assert results["settings"]["tier"] == 12
    assert [row["batch"] for row in results["results"][:4]] == [1, 2, 1, 2]
    stages = [row["stage"] for row in results["results"]]
    assert stages == ["T3", "T3", "S3Gen", "S3Gen", "streams", "streams", "end to end"]
    assert all(row["median"] > 0 for row in results["results"][:-1])
    whole = results["results"][-1]
    assert whole["runs"] == 1 and whole["x real time, each"] == [whole["x real time"]]
    assert whole["failed"] == [] and whole["words"] == len(TEXT.split()) and whole["x real time"] > 0
    assert 0 < whole["T3 share"] + whole["S3Gen share"] <= 1.01
    printed = capsys.readouterr().out
    assert "x real time, steady" in printed and "GPU busy share" in printed


def test_listeners_hear_a_text_before_they_ask_for_the_next(babbler: Path, tmp_path: Path) -> None:
    parts = ["streams", "listeners", "end-to-end-streams"]
    command = ["bench", "--model", babbler, "--only", *parts, "--batch-sizes", 3, "--json"]
    (tmp_path / "text.txt").write_text(TEXT)
    settings = ["--tokens", 50, "--repeats", 1, "--no-watermark", "--tier", 12, "--text", tmp_path / "text.txt"]
    assert main([str(a) for a in [*command, tmp_path / "out.json", *settings]]) == 0
    pressing, listening, whole = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [row["stage"] for row in (pressing, listening)] == ["streams", "listeners"]
    assert whole["stage"] == "end to end, in streams" and whole["chunks"] == len(split_text(TEXT))
    assert whole["audio s"] > 0 and whole["x real time, each"] == [whole["x real time"]]
    assert 0 < whole["first audio s, median"] <= whole["elapsed s"]
    assert pressing["of"] == listening["of"] == 3
    assert 0 < listening["x real time"] <= 3  # no faster than three people hear
    for row in (pressing, listening):
        assert row["cores busy, by thread"]["chatterbox-engine"] > 0


def test_a_text_of_ours_fills_several_batches_of_a_gpu() -> None:
    def model(device: str) -> Any:
        options = SimpleNamespace(max_batch_size=16)
        return SimpleNamespace(device=torch.device(device), t3_stage=SimpleNamespace(options=options))

    once = text_for(model("cpu"))
    pieces = len(split_text(once))
    assert pieces >= 3 and 64 <= len(split_text(text_for(model("cuda")))) < 64 + pieces
    assert batch_sizes(None, model("cpu")) == [1, 16] and batch_sizes([3], model("cpu")) == [3]


def test_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--model", "babble", "--text", str(tmp_path / "none")]) == 2
    assert main(["bench", "--model", "babble", "--only", "t3", "--batch", "0"]) == 2
    assert main(["bench", "--model", "babble", "--only", "t3", "--language", "de"]) == 2
    assert capsys.readouterr().err.count("error:") == 3
