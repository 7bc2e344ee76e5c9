"""The command line as its user meets it: in a process of its own, judged by its files, lines and exit status."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("vllm")

from chatterbox_vllm import __version__
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.audio.watermark import Watermarker

SAY = ("say", "Good morning.", "--seed", "3", "-o")


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "chatterbox_vllm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def assert_refused(done: subprocess.CompletedProcess, *named: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("chatterbox-vllm: error: "), done.stderr
    assert all(name in lines[0] for name in named), lines[0]
    assert done.stdout == ""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of our own, so that the demo model is built by the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATTERBOX_VLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, cache) -> tuple[Path, subprocess.CompletedProcess]:
    path = tmp_path_factory.mktemp("out") / "morning.wav"
    return path, run(*SAY, path, "--model", "demo")


def test_say(spoken: tuple[Path, subprocess.CompletedProcess]) -> None:
    path, done = spoken
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", done.stderr
    wave, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000 and wave.ndim == 1
    assert done.stdout.startswith(f"{path}: {len(wave) / rate:.2f} s, seed 3, babble")
    assert 0.01 < np.abs(wave).max() < 0.99 and np.sqrt(np.mean(wave**2)) > 0.01
    assert Watermarker().detect(wave, rate) > 0.9


def test_say_from_standard_input_with_a_voice(spoken: tuple[Path, subprocess.CompletedProcess], tmp_path: Path) -> None:
    out = tmp_path / "cloned.flac"
    done = run("say", "-", "--seed", 3, "-o", out, "--model", "demo", "--voice", spoken[0], input="Good morning.")
    assert done.returncode == 0, done.stderr
    wave, rate = soundfile.read(out, dtype="float32")
    original, _ = soundfile.read(spoken[0], dtype="float32")
    assert rate == 24_000 and np.isfinite(wave).all()
    assert len(wave) != len(original) or np.abs(wave - original).max() > 0.01


def test_info() -> None:
    done = run("info", "--json", "--model", "demo")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["chatterbox-vllm"] == __version__ and facts["device"]["stages"]["T3"].startswith("cpu")
    small = facts["model"]["components"]["t3 transformer"]["parameters"]
    whole = json.loads(run("info", "--json").stdout)["model"]["components"]
    assert small < whole["t3 transformer"]["parameters"] == pytest.approx(511.8e6, rel=1e-3)
    # The published count of the vocoder, parity with upstream's own module.
    assert whole["s3gen vocoder"]["parameters"] == pytest.approx(20.8e6, rel=5e-3)
    assert "T3 on cpu" in run("info").stdout


def test_what_can_be_refused_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert_refused(run("say", "  ", "-o", out), "no text")
    assert_refused(run("say", "-o", out), "TEXT", "--file")
    assert_refused(run("say", "Hi.", "--file", tmp_path / "x.txt", "-o", out), "either")
    assert_refused(run("say", "--file", tmp_path / "none.txt", "-o", out), "none.txt")
    assert_refused(run("say", "--file", tmp_path / "latin.txt", "-o", out), "latin.txt", "UTF-8")
    assert_refused(run("say", "Hi.", "-o", tmp_path / "out.xyz"), ".xyz")
    assert_refused(run("say", "Hi.", "-o", tmp_path / "missing" / "out.wav"), "missing")
    assert_refused(run("say", "Hi.", "-o", out, "--temperature", "9"), "temperature", "9")
    assert_refused(run("say", "Hi.", "-o", out, "--steps", "two"), "--steps", "two")
    assert_refused(run("speak", "Hi."), "speak")
    assert list(tmp_path.glob("out*")) == []


def test_models_and_devices_that_are_not_there(tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    assert_refused(run(*SAY, out), "ResembleAI/chatterbox", "directory", "HF_HOME", "demo")
    assert_refused(run(*SAY, out, "--model", tmp_path / "nothing"), "nothing")
    assert_refused(run(*SAY, out, "--model", tmp_path), "tokenizer.json")
    assert_refused(run(*SAY, out, "--model", "demo", "--device", "tpu"), "tpu", "cuda:N")


def test_bad_reference_clips(tmp_path: Path) -> None:
    clips = {"silent.wav": np.zeros(48_000), "click.wav": np.ones(1) * 0.5, "short.wav": np.full(4800, 0.2)}
    named = {"silent.wav": "silent", "click.wav": "0.00 s", "short.wav": "0.20 s"}
    for name, wave in clips.items():
        write_audio(tmp_path / name, wave.astype(np.float32), 24_000)
    (tmp_path / "text.wav").write_text("no audio in here")
    named |= {"text.wav": "text.wav"}
    for name, fault in named.items():
        assert_refused(run(*SAY, tmp_path / "o.wav", "--model", "demo", "--voice", tmp_path / name), fault)
    assert not (tmp_path / "o.wav").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    out = tmp_path / "out.wav"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = run(*SAY, out, "--model", "demo", preexec_fn=limit, env=environment)
    assert_refused(done, "out.wav")
    assert list(tmp_path.iterdir()) == []


def interruptible() -> None:
    """For a child: a shell that runs the tests in the background has its processes ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_interrupted(sent: signal.Signals, status: int, said: str, tmp_path: Path) -> None:
    text = "This takes a while to say. " * 300  # minutes, on any machine
    command = [sys.executable, "-m", "chatterbox_vllm", "say", text, "-o", tmp_path / "o.wav", "--model", "demo"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible) as process:
        time.sleep(8)
        process.send_signal(sent)
        try:
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == status, errors
    assert errors.strip().splitlines()[-1] == f"chatterbox-vllm: {said}"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_in_a_finaliser_is_not_lost() -> None:
    script = """
import signal, sys, time
from chatterbox_vllm.cli.interrupts import keep_interrupts

class Finalised:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0)  # where Python raises it

keep_interrupts()
Finalised()
try:
    time.sleep(10)
except KeyboardInterrupt:
    sys.exit(130)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=interruptible)
    assert done.returncode == 130 and not done.stderr
