"""The side-by-side benchmark.

The published package pins versions that vLLM cannot live with, so it is in no environment of these tests: a small one
of the same name and calls stands for it. What is tested is the harness, not the package.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm.bench import upstream_worker
from chatterbox_vllm.bench.upstream import Workload, run_upstream
from chatterbox_vllm.cli import main
from chatterbox_vllm.errors import ConfigError, GenerationError

# Draws as many tokens as it may, 0.04 s of audio for each; talks on standard output; needs the two steps asked for.
PACKAGE = """
import os, time, torch

class T3:
    def inference(self, *, text_tokens, max_new_tokens):
        time.sleep(0.001 * max_new_tokens)
        return torch.zeros(1, max_new_tokens, dtype=torch.long)

class S3Gen:
    def inference(self, speech_tokens, n_cfm_timesteps=None):
        if n_cfm_timesteps != 2:
            raise ValueError(f"{n_cfm_timesteps} steps")
        time.sleep(0.002 * len(speech_tokens))
        return torch.zeros(1, 960 * len(speech_tokens)), None

class ChatterboxTTS:
    sr = 24000

    @classmethod
    def from_local(cls, ckpt_dir, device):
        assert device == "cpu" and os.path.isdir(ckpt_dir), (ckpt_dir, device)
        print("loaded")
        return cls()

    def __init__(self):
        self.t3, self.s3gen = T3(), S3Gen()

    def generate(self, text):
        if "unspeakable" in text:
            raise RuntimeError("cannot say that")
        if "deadly" in text:
            os._exit(7)
        tokens = self.t3.inference(text_tokens=text, max_new_tokens=1000)
        wave, _ = self.s3gen.inference(speech_tokens=tokens[0])
        print("spoken")
        return wave
"""
TEXTS = ["A short one.", "This one is a little longer than the other."]
TOKENS = [25, 72]  # one second at least, else 25 tokens for 15 characters


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the stand-in, in which the workers' interpreters look first."""
    folder = tmp_path / "packages"
    (folder / "chatterbox").mkdir(parents=True)
    (folder / "chatterbox" / "__init__.py").write_text("")
    (folder / "chatterbox" / "tts.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


def test_both_sides(
    babbler: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("chatterbox_vllm.bench.upstream.TEXTS", TEXTS)
    command = ["bench", "--model", babbler, "--only", "upstream", "--synthetic"]
    settings = ["--steps", 2, "--repeats", 2, "--batch", 4, "--no-watermark", "--json", tmp_path / "out.json"]
    assert main([str(a) for a in command + settings]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["published package"]["torch"] == torch.__version__
    theirs, alone, together, *ratios = results["results"]
    assert [(row["engine"], row["how"]) for row in results["results"]] == [
        ("published package", "one at a time"),
        ("chatterbox-vllm", "one at a time"),
        ("chatterbox-vllm", "all together"),
        ("ratio", "one at a time"),
        ("ratio", "all together"),
    ]
    assert theirs["failed"] == alone["failed"] == together["failed"] == []
    # Both sides had the same bound, which the stand-in reaches; the same seeds say the same alone and together.
    assert theirs["T3 tokens"] == 2 * sum(TOKENS)
    assert 0 < alone["T3 tokens"] == together["T3 tokens"] <= 2 * sum(TOKENS)
    assert alone["audio s"] == together["audio s"] <= 0.04 * alone["T3 tokens"]
    assert theirs["audio s"] == pytest.approx(0.04 * theirs["T3 tokens"])
    assert 100 < theirs["T3 tokens/s"] <= 1000 and 2 < theirs["S3Gen x real time"] <= 20
    for row, ratio in zip((alone, together), ratios, strict=True):
        assert ratio["x real time"] == pytest.approx(row["x real time"] / theirs["x real time"], abs=1e-3)
        assert row["x real time"] < row["S3Gen x real time"]
    assert together["a text, median s"] is None is ratios[1]["a text, median s"]
    machine, table = (part.splitlines() for part in capsys.readouterr().out.split("\n\n", 1))
    assert machine[0].split()[0] == "date"
    assert " ".join(table[0].split()) == "published package chatterbox-vllm chatterbox-vllm ratio ratio"
    line = next(line for line in table if line.startswith("T3 tokens/s"))
    assert float(line.split()[2]) == pytest.approx(theirs["T3 tokens/s"], rel=1e-3)


def test_some_texts_fail(package: Path, tmp_path: Path) -> None:
    workload = Workload.of(["The unspeakable.", *TEXTS], synthetic=True, steps=2, repeats=1)
    ticks: list[tuple[int, int]] = []
    run = run_upstream(
        sys.executable, tmp_path, torch.device("cpu"), None, workload, lambda done, of: ticks.append((done, of))
    )
    assert run.row["failed"] == ["'The unspeakable.': RuntimeError: cannot say that"]
    assert run.row["T3 tokens"] == sum(TOKENS)
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]  # the first one, to warm up, and all


def test_death_on_the_way(package: Path, tmp_path: Path) -> None:
    workload = Workload.of([*TEXTS, "The deadly."], synthetic=True, steps=2, repeats=1)
    with pytest.raises(GenerationError, match=r"ended early \(status 7\)"):
        run_upstream(sys.executable, tmp_path, torch.device("cpu"), None, workload)


WORKLOAD = Workload.of(TEXTS, synthetic=True, steps=2, repeats=1)
JOB: dict[str, Any] = {
    "family": "english",
    "directory": "/",
    "device": "cpu",
    "voice": None,
    "steps": 2,
    "utterances": [],
}


def _events(monkeypatch: pytest.MonkeyPatch, package: Path, job: dict[str, Any]) -> list[dict[str, Any]]:
    """What the worker says, run in this process."""
    monkeypatch.syspath_prepend(str(package))
    events: list[dict[str, Any]] = []
    try:
        upstream_worker.work(job, events.append)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "chatterbox"]:
            del sys.modules[name]
    return events


def test_worker_says_why(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [event["event"] for event in _events(monkeypatch, package, JOB)] == ["loaded", "done"]
    (event,) = _events(monkeypatch, package, {**JOB, "directory": "/nowhere"})
    assert event["event"] == "not loadable" and "/nowhere" in event["error"]
    (package / "chatterbox" / "tts.py").write_text("raise OSError('libtorchaudio.so')")
    (event,) = _events(monkeypatch, package, JOB)
    assert event == {"event": "not importable", "error": "OSError: libtorchaudio.so"}


# Nano's own names; it draws a token more than it is told, and takes two steps in any case.
NANO = (
    PACKAGE.replace("class ChatterboxTTS", "class ChatterboxTurboTTS")
    .replace("ckpt_dir, device)", "ckpt_dir, device, nano=False)", 1)
    .replace('assert device == "cpu"', 'assert nano and device == "cpu"')
    .replace("inference(self, *, text_tokens, max_new_tokens)", "inference_turbo(self, *, text_tokens, max_gen_len)")
    .replace("        time.sleep(0.001 * max_new_tokens)", "        max_new_tokens = 1 + max_gen_len")
    .replace(
        "t3.inference(text_tokens=text, max_new_tokens=1000)", "t3.inference_turbo(text_tokens=text, max_gen_len=9)"
    )
    .replace("speech_tokens=tokens[0])", "speech_tokens=tokens[0], n_cfm_timesteps=2)")
)


def test_a_family_by_its_own_class(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "chatterbox" / "tts_turbo.py").write_text(NANO)
    utterances = [{"text": TEXTS[0], "max_tokens": TOKENS[0], "seed": 1}]
    loaded, spoken, done = _events(monkeypatch, package, {**JOB, "family": "nano", "utterances": utterances})
    assert loaded["event"] == "loaded" and done["event"] == "done"
    assert spoken["tokens"] == TOKENS[0] and spoken["audio"] == pytest.approx(0.04 * TOKENS[0])


def test_a_method_is_as_before_after_it_was_timed() -> None:
    class Owner:
        def inference(self, *, most: int, rest: int) -> int:
            return most + rest

    owner, waits = Owner(), []
    with upstream_worker.standing_before(owner, "inference", lambda: waits.append(1), most=5) as taken:
        assert owner.inference(most=1000, rest=1) == 6
    assert owner.inference(most=1000, rest=1) == 1001
    assert taken.results == [6] and taken.seconds > 0 and len(waits) == 2


def _interpreter_that_says(folder: Path, events: list[dict[str, Any]]) -> Path:
    """An executable that reads its job and writes these events."""
    (folder / "events").write_text("".join(json.dumps(event) + "\n" for event in events))
    python = folder / "python"
    python.write_text(f"#!/bin/sh\ncat > /dev/null\ncat '{folder / 'events'}'\n")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("event", "remedy"),
    [
        ({"event": "not importable", "error": "No module named 'chatterbox'"}, "--upstream-python"),
        ({"event": "not loadable", "error": "size mismatch"}, "published sizes"),
    ],
)
def test_errors_name_the_remedy(event: dict[str, str], remedy: str, tmp_path: Path) -> None:
    python = _interpreter_that_says(tmp_path, [event])
    with pytest.raises(ConfigError, match=remedy) as caught:
        run_upstream(python, tmp_path, torch.device("cpu"), None, WORKLOAD)
    assert event["error"] in str(caught.value)


def test_no_such_interpreter(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be run"):
        run_upstream(tmp_path / "none", tmp_path, torch.device("cpu"), None, WORKLOAD)


def test_all_texts_fail(tmp_path: Path) -> None:
    spoken = {"event": "spoken", "error": "RuntimeError: no"}
    done = {"event": "done", "device_bytes": None, "host_bytes": 1}
    python = _interpreter_that_says(tmp_path, [{"event": "loaded"}, spoken, spoken, spoken, done])
    with pytest.raises(GenerationError, match="none of the texts.*A short one.*RuntimeError: no"):
        run_upstream(python, tmp_path, torch.device("cpu"), None, WORKLOAD)


def test_steps_are_checked_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="diffusion_steps"):
        Workload.of(TEXTS, synthetic=True, steps=0, repeats=1)
