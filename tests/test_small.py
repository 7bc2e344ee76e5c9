"""The small model of the package: it is there, whole, under its names, and what it says is speech."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from chatterbox_vllm import ChatterboxVC
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.cli import main
from chatterbox_vllm.cli.players import play
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.evaluation.own_speech import SpeechFigures, measure_speech
from chatterbox_vllm.families import small as small_family
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.families.small import PACKED, small_directory
from chatterbox_vllm.families.voices import voices_of
from chatterbox_vllm.setup.inspection import model_facts
from chatterbox_vllm.setup.models import resolve_model
from chatterbox_vllm.voices.voice import Voice

ROOT = Path(__file__).parents[1]
TEXTS = ("The birch canoe slid on the smooth planks.", "Would you like a cup of tea, or shall we go now?")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("CHATTERBOX_VLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packed model, which takes its place."""
    directory = Path(shutil.copytree(PACKED, tmp_path / "packed"))
    monkeypatch.setattr(small_family, "PACKED", directory)
    return directory


class TestUnpacking:
    def test_happens_once_and_gives_a_whole_model(self, empty_cache: Path) -> None:
        directory = small_directory()
        (name,) = (path.name for path in empty_cache.iterdir())
        assert directory == empty_cache / name and name.startswith("small-")
        written = (directory / "config.json").stat().st_mtime_ns
        begun = time.monotonic()
        assert small_directory() == directory and time.monotonic() - begun < 1
        assert (directory / "config.json").stat().st_mtime_ns == written
        config = config_of(directory)
        assert config.synthetic is False and model_facts(directory)["files"]
        for path in voices_of(directory).values():
            Voice.load(path, config)

    def test_other_weights_get_another_directory(self, empty_cache: Path, packed: Path) -> None:
        before = small_family._digest(packed)
        last = max(packed.iterdir())
        last.write_bytes(last.read_bytes() + b"\0")
        assert small_family._digest(packed) != before

    def test_a_damaged_package_says_to_install_it_anew(self, empty_cache: Path, packed: Path) -> None:
        max(packed.iterdir()).unlink()
        with pytest.raises(CheckpointError, match="damaged .*install this package anew"):
            small_directory()
        assert list(empty_cache.iterdir()) == []
        shutil.rmtree(packed)
        with pytest.raises(CheckpointError, match="missing; install this package anew"):
            small_directory()

    def test_a_full_disk_leaves_nothing(self, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(packed: Path, out: Path) -> None:
            (out / "config.json").write_text("{}")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(small_family, "read_packed", full)
        with pytest.raises(OutputError, match="No space left.*CHATTERBOX_VLLM_CACHE"):
            small_directory()
        assert list(empty_cache.iterdir()) == []

    def test_processes_at_once_and_one_that_is_killed(self, empty_cache: Path) -> None:
        script = "from chatterbox_vllm.families.small import small_directory; print(small_directory())"
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        killed = subprocess.Popen([sys.executable, "-c", script], env=environment)
        while not list(empty_cache.glob("*.partial-*")) and killed.poll() is None:
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        command = [sys.executable, "-c", script]
        both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = {process.communicate(timeout=120)[0] for process in both}
        assert len(said) == 1 and all(process.returncode == 0 for process in both)
        assert config_of(Path(said.pop().strip())).synthetic is False


def test_its_names() -> None:
    assert resolve_model("small") == resolve_model("demo") == small_directory()
    assert config_of(resolve_model("babble")).synthetic
    with pytest.raises(ConfigError, match="'small' has no revisions"):
        resolve_model("small", revision="main")


def test_it_is_in_what_is_installed(tmp_path: Path) -> None:
    for target in ("wheel", "sdist"):
        command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(tmp_path)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    parts = sorted(PACKED.glob("part.*"))
    assert parts and sum(part.stat().st_size for part in parts) <= 25_000_000
    for part in parts:
        place = part.relative_to(PACKED.parents[2])  # the sources, or where an installed package lies
        assert sizes[str(place)] == part.stat().st_size and f"src/{place}" in sources


def is_speech(figures: SpeechFigures) -> bool:
    """Between what the model was measured to do (0.03 to 0.07, 0.57 to 0.76, 1.5) and noise (0.43, 0.01, 0.3)."""
    return figures.flatness < 0.15 and figures.voiced > 0.35 and figures.movement > 1.0


def test_what_it_says_is_speech_of_a_natural_length(speaker: Any) -> None:
    for text, wave in zip(TEXTS, speaker.generate(list(TEXTS), seed=1), strict=True):
        figures = measure_speech(wave[0].numpy())
        assert is_speech(figures), figures
        # English is read at 12 to 25 letters a second.
        assert 0.04 < figures.seconds / len(text) < 0.085
        assert -30 < figures.level < -15 and figures.clipped < 0.001 and figures.repetition < 0.7


def test_it_says_a_recording_in_another_of_its_voices(speaker: Any, tmp_path: Path) -> None:
    wave = speaker.generate(TEXTS[0], seed=1)
    recording = write_audio(tmp_path / "recording.wav", wave[0].numpy(), speaker.sr)
    with ChatterboxVC.from_pretrained("small", "cpu", watermark=False) as vc:
        vc.target = vc.builtin_voice(next(name for name in vc.voices if name.startswith("am_")))
        said = vc.generate(recording, seed=1)
    assert abs(said.shape[1] - wave.shape[1]) <= vc.sr // 25 and is_speech(measure_speech(said[0].numpy()))


def test_it_takes_as_many_steps_as_its_configuration_names(speaker: Any) -> None:
    assert speaker.defaults["diffusion_steps"] == 4
    plain, four, ten = (
        speaker.generate("Well done.", seed=1, **steps) for steps in ({}, *({"diffusion_steps": n} for n in (4, 10)))
    )
    assert plain.equal(four) and not plain.equal(ten)


def test_noise_of_the_same_level_is_not_taken_for_speech(babbler: Path) -> None:
    import numpy as np

    noise = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.08
    assert not is_speech(measure_speech(noise))


def test_its_voices_differ(speaker: Any) -> None:
    names = speaker.voices
    assert names[0] == "builtin" and {"af_bella", "am_michael", "bf_emma", "bm_george"} <= set(names)
    pitches = {}
    for name in ("af_bella", "am_michael"):
        speaker.conds = speaker.builtin_voice(name)
        pitches[name] = pitch(speaker.generate(TEXTS[0], seed=1)[0].numpy())
    assert pitches["af_bella"] > 1.3 * pitches["am_michael"]
    assert 70 < pitches["am_michael"] < 160
    with pytest.raises(ConfigError, match="has no voice 'bella'.* such as af_bella"):
        speaker.builtin_voice("bella")


def pitch(wave: Any) -> float:
    """The median pitch of the clearly voiced frames, in Hz."""
    import numpy as np

    rate, size = 24_000, 1024
    lags = np.arange(round(rate / 350), round(rate / 70))
    found = []
    for begin in range(0, len(wave) - 2 * size, size // 2):
        frame = wave[begin : begin + 2 * size]
        scores = np.array([frame[:size] @ frame[lag : lag + size] for lag in lags])
        norms = np.array([frame[lag : lag + size] @ frame[lag : lag + size] for lag in lags])
        scores /= np.sqrt(norms * (frame[:size] @ frame[:size])) + 1e-6
        if scores.max() > 0.8 and frame.std() > 0.02:
            # The shortest of the lags that are nearly as good: the others are its multiples.
            found.append(rate / lags[np.argmax(scores > 0.93 * scores.max())])
    return float(np.median(found)) if found else math.nan


class TestVoicesOfTheCommandLine:
    def test_are_listed_and_shown(self, capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CHATTERBOX_VOICES", str(tmp_path))
        assert main(["voices", "list"]) == 0
        printed = capsys.readouterr()
        assert "with the model small: builtin, af_alloy" in printed.out and "bm_george" in printed.out
        assert len(printed.err.splitlines()) == 1 and "using the small model" in printed.err
        assert main(["voices", "list", "--model", "english"]) == 0
        assert "download english" in capsys.readouterr().out
        assert main(["voices", "show", "am_adam"]) == 0
        assert "am_adam.pt" in capsys.readouterr().out

    def test_are_played(self, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("vllm")
        player = tmp_path / "player"
        monkeypatch.setattr("chatterbox_vllm.cli.players._PLAYERS", ((str(player), "-q"),))
        monkeypatch.chdir(tmp_path)
        words = ["voices", "play", "bm_george", "Good morning to you.", "--model", "small", "--seed", "1"]
        assert main(words) == 2
        printed = capsys.readouterr()
        assert "bm_george.wav is written" in printed.err and "install aplay" in printed.err
        assert printed.out.startswith("bm_george.wav: ")
        wave = (tmp_path / "bm_george.wav").read_bytes()
        player.write_text(f'#!/bin/sh\ncp "$2" "{tmp_path}/heard.wav"\n')
        player.chmod(0o755)
        play(Path("bm_george.wav"))
        assert (tmp_path / "heard.wav").read_bytes() == wave
        player.write_text("#!/bin/sh\necho no sound card >&2; exit 1\n")
        with pytest.raises(
            OutputError, match=r"bm_george\.wav is written, but .*player cannot play it \(no sound card\)"
        ):
            play(Path("bm_george.wav"))

    def test_one_that_is_unknown(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["say", "Hi.", "-o", str(tmp_path / "o.wav"), "--voice", "emma", "--model", "small"]) == 2
        assert "such as bf_emma" in capsys.readouterr().err
