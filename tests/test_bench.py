"""`chatterbox-vllm bench` on the demo model: every part runs, and the results are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from chatterbox_vllm.cli import main

TEXT = "This is the first sentence of a short text. And this is the second one, which is the last."


def test_every_part(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    command = ["bench", "--model", demo, "--text", tmp_path / "text.txt", "--json", tmp_path / "out.json"]
    settings = ["--batch", 1, 2, "--lengths", 1, "--tokens", 30, "--repeats", 1, "--steps", 2, "--no-watermark"]
    assert main([str(a) for a in command + settings]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["device"] == "cpu" and results["settings"]["steps"] == 2
    stages = [row["stage"] for row in results["results"]]
    assert stages == ["T3", "T3", "S3Gen", "S3Gen", "first audio", "end to end"]
    assert all(row["median"] > 0 for row in results["results"][:-1])
    whole = results["results"][-1]
    assert whole["failed"] == [] and whole["words"] == len(TEXT.split()) and whole["x real time"] > 0
    assert 0 < whole["T3 share"] + whole["S3Gen share"] <= 1.01
    printed = capsys.readouterr().out
    assert "x real time, steady" in printed and "GPU busy share" in printed


def test_bad_calls(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--model", "demo"]) == 2
    assert main(["bench", "--model", "demo", "--text", str(tmp_path / "none")]) == 2
    assert main(["bench", "--model", "demo", "--only", "t3", "--batch", "0"]) == 2
    assert capsys.readouterr().err.count("error:") == 3
