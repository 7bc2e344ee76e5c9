"""Speech recognisers of `chatterbox-vllm evaluate`: functions and commands, good and bad."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")
pytest.importorskip("matplotlib")
pytest.importorskip("pystoi")

from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.evaluation import asr
from chatterbox_vllm.evaluation.asr import load_recogniser
from chatterbox_vllm.evaluation.compare import compare
from chatterbox_vllm.evaluation.plan import EvaluationPlan
from tests.made_up_collections import Ears, made_up, silence
from tests.test_evaluate import Command

WAVE = np.sin(np.arange(16_000) / 20).astype(np.float32)


def test_recognisers(tmp_path: Path) -> None:
    assert load_recogniser("tests.test_evaluate:parrot")(WAVE) == "good morning"
    script = tmp_path / "hear.sh"
    script.write_text('head -c 4 "$2"; echo " $1"\n')
    assert load_recogniser(f"sh {script} last")(WAVE) == "RIFF last"
    assert load_recogniser(f"sh {script} middle {{}} more")(WAVE) == "RIFF middle"
    with pytest.raises(GenerationError, match="status 3: no such tongue"):
        load_recogniser("sh -c 'echo no such tongue >&2; exit 3'")(WAVE)
    with pytest.raises(GenerationError, match="not UTF-8"):
        load_recogniser("printf '\\377'")(WAVE)
    with pytest.raises(GenerationError, match=r"ZeroDivisionError"):
        load_recogniser("tests.test_evaluate_words:broken")(WAVE)
    with pytest.raises(GenerationError, match="int"):
        load_recogniser("tests.test_evaluate_words:deaf")(WAVE)
    with pytest.raises(ConfigError, match="command line"):
        load_recogniser("sh 'unclosed")


def deaf(wave: np.ndarray) -> int:
    return 0


def broken(wave: np.ndarray) -> str:
    raise ZeroDivisionError


def leaver(wave: np.ndarray) -> str:
    sys.exit(0)


def test_a_recogniser_that_exits_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GenerationError, match="SystemExit: 0"):
        load_recogniser("tests.test_evaluate_words:leaver")(WAVE)
    (tmp_path / "leaves_at_import.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="SystemExit: 0"):
        load_recogniser("leaves_at_import:hear")


def interrupted(wave: np.ndarray) -> str:
    raise KeyboardInterrupt


def test_an_interrupt_in_a_recogniser_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        load_recogniser("tests.test_evaluate_words:interrupted")(WAVE)


def test_whoever_exits_leaves_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = Command(tmp_path, monkeypatch)
    monkeypatch.setattr("chatterbox_vllm.evaluation.compare.compare", lambda *_: sys.exit(0))
    assert command() == 2
    output = capsys.readouterr()
    assert "SystemExit: 0" in output.err.splitlines()[-1] and not output.out


@pytest.mark.parametrize(("required", "status", "word"), [("false", 0, "passed"), ("true", 2, "incomplete")])
def test_a_recogniser_that_fails_leaves_the_other_gates(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    required: str,
    status: int,
    word: str,
) -> None:
    command = Command(tmp_path, monkeypatch)
    (tmp_path / "own.toml").write_text(f"[word_errors]\nrequired = {required}\n[pesq]\nrequired = false\n")
    assert command("--asr", "tests.test_evaluate_words:leaver") == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(word)
    assert (
        "not run  word_errors          the recogniser tests.test_evaluate_words:leaver failed: SystemExit: 0" in lines
    )
    assert any(line.startswith("passed   t3_kl ") for line in lines)


def test_a_case_that_the_baseline_did_not_speak_has_no_word_errors(tmp_path: Path) -> None:
    plan = EvaluationPlan(texts=("One two.", "Three four."))
    pair = [made_up(tmp_path / name, plan) for name in ("baseline", "candidate")]
    silence(pair[0], 0, "no room")
    silence(pair[1], 1, "no room")
    found = compare(plan, *pair, Ears(), lambda wave: "three four")  # type: ignore[arg-type]
    assert [figures.word_errors for figures in found.cases] == [None, (0, 2, 2)]
    assert found.measurements["word_errors"].value == 1
    silence(pair[0], 1, "no room")
    found = compare(plan, *pair, Ears(), lambda wave: "three four")  # type: ignore[arg-type]
    assert found.measurements["word_errors"].value is None


def test_a_command_that_takes_too_long_ends_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asr, "_MOST_SECONDS", 1)
    reading, writing = os.pipe()
    monkeypatch.setattr(asr.subprocess, "Popen", passing(writing))
    with pytest.raises(GenerationError, match="timed out"):
        load_recogniser("sh -c 'sleep 60; echo late'")(WAVE)
    os.close(writing)
    # The pipe ends when the last process that holds it has: the shell and its sleep.
    os.set_blocking(reading, False)
    end = time.monotonic() + 5
    while True:
        try:
            assert os.read(reading, 1) == b""
            break
        except BlockingIOError:
            assert time.monotonic() < end, "a child goes on"
            time.sleep(0.01)
    os.close(reading)


def passing(descriptor: int) -> type:
    """`subprocess.Popen` whose processes hold a file descriptor, too."""

    class Passing(subprocess.Popen):
        def __init__(self, *arguments, **keywords):  # type: ignore[no-untyped-def]
            super().__init__(*arguments, pass_fds=(descriptor,), **keywords)

    return Passing
