"""The command `batch`: what it refuses, and what becomes of it when it is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chatterbox_vllm.batch.folder import Folder
from chatterbox_vllm.batch.rows import Input
from chatterbox_vllm.batch.run import Batch, tell_faults
from chatterbox_vllm.batch.voices import RowVoices
from chatterbox_vllm.cli import main
from chatterbox_vllm.engine.request import SpeechParameters
from tests.batches import RUN, FakeSpeaker, manifest, write


def test_refused_before_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("chatterbox_vllm.tts.ChatterboxTTS.from_pretrained", None)  # fails where it is called
    source = write(tmp_path / "in.txt", "One.")
    out = tmp_path / "out"
    for arguments, named in (
        ((tmp_path / "none.txt",), "none.txt"),
        ((source, "--temperature", 9), "temperature"),
        ((source, "--voice", tmp_path / "none.wav"), "none.wav"),
        ((source, "--audio-format", "aiff"), "aiff"),
        ((write(tmp_path / "ids.jsonl", {"text": "x", "id": "../x"}),), "../x"),
        ((source, "--device", "tpu"), "tpu"),
    ):
        assert main(["batch", *map(str, arguments), "-d", str(out), "--model", "babble"]) == 2
        printed = capsys.readouterr()
        assert named in printed.err and len(printed.err.splitlines()) == 1, printed.err
        assert printed.out == "" and not out.exists()


def test_faults_are_told_before_the_model_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"text": "one"},
        {"text": "...", "id": "dots"},
        {"text": "x", "exageration": 1},
        {"text": "x", "voice": "none.wav"},
    )
    with Input(str(source)) as rows, Folder(tmp_path / "out") as folder:
        folder.begin(folder.open(RUN, rows.check(), False, False))
        voices = RowVoices(rows.directory, {}, None)
        told = tell_faults(rows, folder, voices)
        lines = capsys.readouterr().err.splitlines()
        assert told == {1, 2, 3}
        assert "row 1 (line 2, id 'dots'): there is no text to speak" in lines[0]
        assert "row 2 (line 3," in lines[1] and "unknown key 'exageration'" in lines[1]
        assert "row 3 (line 4," in lines[2] and "none.wav" in lines[2]
        summary = Batch(rows, folder, FakeSpeaker(), SpeechParameters(), voices, None, ".wav", told).run()
        assert (summary.spoken, summary.failed) == (1, 3) and capsys.readouterr().err == ""


def test_nothing_to_speak_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    source = write(tmp_path / "in.jsonl", {"text": "..."}, {"text": "\u200b"}, {"text": "* * *"})
    monkeypatch.setattr("chatterbox_vllm.cli.batch.loaded", None)
    assert main(["batch", str(source), "-d", str(tmp_path / "out"), "--model", "babble"]) == 1
    assert ["no text to speak" in entry["error"] for entry in manifest(tmp_path / "out")] == [True] * 3


def test_a_run_goes_on_with_the_model_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where no model was named, and the default is another one by now."""
    pytest.importorskip("vllm")
    source = write(tmp_path / "in.jsonl", {"text": "..."})
    command = ["batch", str(source), "-d", str(tmp_path / "out")]
    monkeypatch.setattr("chatterbox_vllm.setup.models.default_model", lambda: "babble")
    assert main(command) == 1
    monkeypatch.setattr("chatterbox_vllm.setup.models.default_model", lambda: "small")
    assert main(command) == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["named"] == {"model": "babble"}
    assert main([*command, "--model", "small"]) == 2 and "another model" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["named"] == {"model": "small"}


def test_killed_twice(tmp_path: Path, babbler: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 rows on the babbling model; the result equals an undisturbed run, file by file."""
    pytest.importorskip("vllm")
    texts: list[Any] = [{"text": f"This is row {i}. " * (1 + i % 3), "id": f"r{i}"} for i in range(20)]
    texts[3] = {"text": "Nobody has this voice.", "voice": "none.wav"}
    source = write(tmp_path / "in.jsonl", *texts)
    options = ("--model", babbler, "--max-tokens", 80, "--seed", 11, "--max-batch-size", 4, "--audio-format", "flac")
    options += ("--diffusion-steps", 2, "--no-watermark")

    def run(out: Path) -> str:
        assert main(["batch", *map(str, (source, "-d", out, *options))]) == 1
        return capsys.readouterr().out

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for least in (random.randrange(2, 7), random.randrange(8, 14)):
        command = [sys.executable, "-m", "chatterbox_vllm", "batch", *map(str, (source, "-d", killed, *options))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_lines(killed / "manifest.jsonl", least, process)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = (killed / "manifest.jsonl").read_bytes().count(b"\n")
    assert 8 <= lines < 20
    finished, undisturbed = run(killed), run(whole)
    assert f"({lines} of 20 were done before), 1 failed" in finished, finished
    assert "19 of 20 rows spoken, 1 failed" in undisturbed and "seed 11" in undisturbed
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    assert sorted(entry["index"] for entry in manifest(killed)) == list(range(20))
    for path in whole.glob("*.flac"):
        assert path.read_bytes() == (killed / path.name).read_bytes(), path.name
    assert "(20 of 20 were done before)" in run(killed)


def wait_for_lines(path: Path, least: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists() or path.read_bytes().count(b"\n") < least:
        assert process.poll() is None, "finished before it was killed"
        assert time.monotonic() < deadline, f"{path} has no {least} lines"
        time.sleep(0.02)
