"""How the processes of `chatterbox-vllm evaluate` end: by themselves, by signals, with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("matplotlib")
pytest.importorskip("pystoi")

from chatterbox_vllm.cli.interrupts import endings_raised
from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.evaluation.collect import CollectionJob, collect_in_process
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from tests.test_evaluate import PLAN, Command


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script be the Python of new processes."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(path))


def test_a_process_that_dies_unheard_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "echo no library >&2; exit 3")
    plan = EvaluationPlan(texts=("word " * 50_000,))  # more than a pipe takes
    with pytest.raises(GenerationError, match=r"status 3 \(no library\)"):
        collect_in_process(CollectionJob("babble", plan, tmp_path / "out"))


def test_an_interrupt_ends_the_process_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; cat > /dev/null; kill -ALRM $PPID; exec sleep 60")
    # Not SIGINT, which is ignored where the tests run in the background.
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            collect_in_process(CollectionJob("babble", PLAN, tmp_path / "out"))
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_command_ends_the_process_and_leaves_no_files(
    number: signal.Signals,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    command = Command(tmp_path, monkeypatch)
    monkeypatch.setattr("chatterbox_vllm.evaluation.collect.collect_in_process", collect_in_process)
    # Twice, as where a closing session sends both to each process of a group.
    again = f"kill -{number.name[3:]} $PPID"
    stand_in(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; cat > /dev/null; {again}; {again}; exec sleep 60")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = signal.signal(number, signal.default_int_handler)
    try:
        with endings_raised():  # as for every command
            assert command() == status
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.endswith(f"\nchatterbox-vllm: ended by {number.name}\n")
    assert list((tmp_path / "temporary").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_process_ends_with_a_parent_that_is_killed() -> None:
    child = """
import os, sys, time
from chatterbox_vllm.evaluation.lifetime import end_with
end_with(int(sys.argv[1]))
print("ready", flush=True)
time.sleep(60)
"""
    parent = "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])"
    with subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.kill()
        # Both hold the pipe, so that it ends with the later.
        assert process.communicate(timeout=10) == ("", None)
    # One whose parent was gone before it could ask.
    late = subprocess.run([sys.executable, "-c", child, "1"], capture_output=True, text=True, timeout=30)
    assert late.returncode == 2 and not late.stdout
