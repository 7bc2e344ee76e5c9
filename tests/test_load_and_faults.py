"""The scripts that put a running server under load, and among ill-behaved clients; in short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

from tests.fake_server import SECONDS_PER_CHARACTER, running
from tests.test_serve_command import served

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KEY = "correct-horse"


def script(name: str, *words: object, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / name, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def loaded(url: str, tmp_path: Path, *words: object) -> dict[str, Any]:
    """The report of a short run, with two texts of 1 s and 0.5 s."""
    texts, report = tmp_path / "texts", tmp_path / "report.json"
    texts.write_text("x" * round(1 / SECONDS_PER_CHARACTER) + "\n\n" + "y" * round(0.5 / SECONDS_PER_CHARACTER) + "\n")
    options = ["--seconds", 2.5, "--warm-up", 0.2, "--texts", texts, "--json", report, "--key", KEY, *words]
    done = script("load.py", url, *options, seconds=60)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + report.read_text()
    return json.loads(report.read_text())


def test_load(tmp_path: Path) -> None:
    with running(tmp_path / "voices", api_keys=(KEY,)) as server:
        report = loaded(server.url, tmp_path, "--users", 1, 3, "--voice", "anna", "bert")
        (listening,) = loaded(
            server.url, tmp_path, "--users", 2, "--voice", "anna", "bert", "--listen", "--max-tokens", 99
        )["rows"]
        assert {request.voice for request in server.engine.requests} == {
            server.engine.tts.named[name] for name in ("anna", "bert")
        }
        assert {request.parameters.max_tokens for request in server.engine.requests} == {None, 99}
    assert report["server"]["model"] == "fake" and report["settings"]["voices"] == ["anna", "bert"]
    one, three = report["rows"]
    assert listening["failed"] == 0 and 0 < listening["x real time"] < one["x real time"]  # two people hear at 2 x
    assert listening["asked"] <= 2 * (2.5 / 0.5 + 1)
    for row, users in ((one, 1), (three, 3)):
        assert row["users"] == users and row["asked"] >= users and row["failed"] == 0 and row["ran dry"] < row["asked"]
        first, factor = row["first audio"], row["real-time factor"]
        assert 0 < first["p50"] <= first["p95"] <= first["p99"] <= first["max"]
        assert 0 < factor["p50"] <= factor["max"] and row["x real time"] > 0


def test_load_sees_what_goes_wrong(tmp_path: Path) -> None:
    with running(tmp_path / "voices", api_keys=(KEY,), max_requests=2) as server:
        server.engine.pause = 0.3  # longer than a part of 0.2 s lasts
        row = loaded(server.url, tmp_path, "--users", 4)["rows"][0]
        assert row["ran dry"] == row["asked"] - row["failed"] > 0 and row["longest wait"] > 0.1
        assert row["failures"] == {"status 429": row["failed"]} and row["failed"] > 0
        wrong = loaded(server.url, tmp_path, "--users", 1, "--key", "another-key")["rows"][0]
        assert set(wrong["failures"]) == {"status 401"} and wrong["first audio"] == {}


def test_faults(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    report = tmp_path / "report.json"
    with served(tmp_path / "voices", CHATTERBOX_STALL_SECONDS="3") as (_, url):
        words = ["--clients", 6, "--seconds", 10, "--stall", 3, "--words", 8, "--growth", 1.3, "--json", report]
        done = script("faults.py", url, *words, seconds=400)
    found = json.loads(report.read_text())
    assert done.returncode == 0 and found["passed"], done.stdout
    assert {"left", "left with a reset"} <= set(found["did"])
    assert any(name.startswith("heard") for name in found["did"])
    assert any(name.startswith(("garbage", "upload", "held")) for name in found["did"])


def test_faults_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose engine fails, and one that lets connections be."""
    faults = run_path(str(BENCHMARKS / "faults.py"))["main"]
    monkeypatch.setitem(faults.__globals__, "CLOSING_SECONDS", 1.0)  # what a server in order needs is not waited for
    report = tmp_path / "report.json"
    with running(tmp_path / "voices", stall_seconds=60) as server:
        server.engine.wave = lambda request: 1 / 0
        words = ["--clients", 6, "--seconds", 1, "--stall", 0.5, "--json", report]
        monkeypatch.setattr(sys, "argv", ["faults.py", *map(str, (server.url, *words))])
        with pytest.raises(SystemExit) as ended:
            faults()
    found = json.loads(report.read_text())
    assert ended.value.code == 1 and not found["passed"] and not found["holds"]["no 5xx"]
    assert (
        any("status 500" in fault for fault in found["faults"]) and not found["holds"]["somebody was heard to the end"]
    )
