"""`chatterbox-vllm models`: every model that the registry knows, without a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatterbox_vllm.cli.run import main
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.registry import FAMILIES
from chatterbox_vllm.setup import catalogue


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert main(["models", "--json", "-"]) == 0
    return {model["name"]: model for model in json.loads(capsys.readouterr().out)}


def test_what_is_told_of_each(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "free_bytes", lambda device: 4 << 30)
    found = listed(capsys)
    assert [*found] == [*FAMILIES, "small"]
    english, small = found["english"], found["small"]
    assert english["languages"] == {"en": "English"} and english["licence"] == small["licence"] == "MIT"
    assert english["repository"] == ENGLISH.repository and small["repository"] is None
    # T3, S3Gen and voice encoder as they are published: 2,129,653,744, 1,056,484,620 and 5,695,784 bytes of file.
    assert abs(english["bytes"] - 3.19e9) < 0.01e9 and small["bytes"] < 0.1e9
    assert Path(small["directory"]).is_dir()
    assert small["fits"] and not english["fits"] and english["needed_bytes"] > english["free_bytes"] == 4 << 30
    assert english["tiers"] == [4, 6, 8, 12, 24, 48]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["model", "languages", "licence"]
    assert any(line.startswith("small") and "fits" in line and "4 GB and more" in line for line in lines)


def test_a_new_family_appears_by_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, babbler: Path
) -> None:
    tongues = {"de": "German", "fr": "French", "it": "Italian", "es": "Spanish"}
    family = replace(ENGLISH, name="polyglot", languages=tongues, licence="Apache-2.0", repository="owner/polyglot")
    monkeypatch.setitem(FAMILIES, "polyglot", family)
    local = catalogue.local_directory
    monkeypatch.setattr(catalogue, "local_directory", lambda name: babbler if name == "polyglot" else local(name))
    found = listed(capsys)["polyglot"]
    assert found["languages"] == tongues and found["licence"] == "Apache-2.0"
    assert found["directory"] == str(babbler)
    assert found["bytes"] == sum(path.stat().st_size for path in babbler.iterdir())
    assert main(["models"]) == 0
    assert "4: de, fr, it, es" in capsys.readouterr().out


def test_no_tier_is_free(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(catalogue, "resolve_device", lambda *a, **k: torch.device("cuda", 0))
    for free, says in ((1 << 30, "no tier is free: 1.0 GiB are"), (7 << 30, "fits: ")):
        monkeypatch.setattr(catalogue, "free_bytes", lambda device, free=free: free)
        assert main(["models"]) == 0
        assert says in capsys.readouterr().out
    found = listed(capsys)["english"]
    assert found["fits"] and found["device"] == "cuda:0" and found["needed_bytes"] < 6 << 30
