"""`chatterbox-vllm methods` on the babbling model: bytes as in theory, errors as the methods make them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from chatterbox_vllm.cli import main


def test_every_component(babbler: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["methods", "--model", babbler, "--methods", "bnb-8bit", "fp8", "--json", tmp_path / "out.json"]
    settings = ["--seconds", 0.4, "--repeats", 1, "--batch", 2]
    assert main([str(a) for a in command + settings]) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    rows = {(row["component"], row["method"]): row for row in results}
    assert len(rows) == 7
    for component, exact in (("t3", 1e-5), ("s3gen", 1e-9), ("voice_encoder", 1e-9)):
        plain, int8 = rows[component, "none"], rows[component, "bnb-8bit"]
        assert plain["error"] <= exact < 1e-4 < int8["error"] < 0.1
        assert int8["bytes/weight"] == pytest.approx(int8["theory"], abs=2e-3)
        assert plain["layers"].startswith("0 of") and not int8["layers"].startswith("0 of")
    int8 = rows["t3", "bnb-8bit"]
    assert int8["of the kernels"] < int8["error"] / 10
    assert rows["t3", "none"]["tokens/s, 2"] > 0 < int8["tokens/s, 2"]
    assert rows["voice_encoder", "none"]["x real time"] > 0
    assert "CUDA" in rows["t3", "fp8"]["not here"]
    printed = capsys.readouterr().out
    assert "not here: fp8: fp8 needs a CUDA device" in printed and "bytes/weight" in printed


def test_refused(babbler: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["quantize", str(babbler), "--voice-encoder", "bnb-8bit", "-o", str(tmp_path / "int8")]) == 0
    assert main(["methods", "--model", str(tmp_path / "int8")]) == 2
    assert main(["methods", "--model", "babble", "--repeats", "0"]) == 2
    assert main(["methods", "--model", "babble", "--json", str(tmp_path / "nowhere" / "out.json")]) == 2
    assert main(["methods", "--model", str(babbler), "--awq", str(tmp_path / "int8")]) == 2
    errors = capsys.readouterr().err
    assert "is quantized already" in errors and "must be positive" in errors
    assert "there is no directory" in errors and "holds no T3 in AWQ" in errors
