"""`chatterbox-vllm convert`: one recording or several, files, directories, pipes, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from chatterbox_vllm import ChatterboxVC
from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.cli.run import main
from tests.made_up_clips import babble

RATE = 24_000
BABBLE = ["--model", "babble", "--device", "cpu", "--no-watermark", "--diffusion-steps", "2"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clips")
    soundfile.write(directory / "one.wav", babble(1.2, RATE, seed=1), RATE)
    soundfile.write(directory / "two.flac", babble(2, 44_100, seed=2), 44_100)
    soundfile.write(directory / "voice.ogg", babble(5, RATE, seed=3), RATE)
    return directory


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    def check(*words: object) -> str:
        assert main(["convert", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("chatterbox-vllm: error: ") and said.err.count("\n") == 1 and not said.out
        return said.err

    return check


def test_one_recording(babbler: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    voice = ["--voice", str(clips / "voice.ogg")]
    assert main(["convert", str(clips / "one.wav"), "-o", str(out), *voice, "--seed", "4", *BABBLE]) == 0
    assert capsys.readouterr().out == f"{out}: 1.20 s, seed 4\n"
    wave, rate = soundfile.read(out, dtype="float32")
    with ChatterboxVC.from_local(babbler, "cpu", watermark=False) as vc:
        alone = vc.generate(clips / "one.wav", clips / "voice.ogg", seed=4, diffusion_steps=2)[0].numpy()
    assert rate == RATE and np.abs(wave - alone).max() < 1e-4


def test_several_recordings(babbler: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "here"
    recordings = [str(clips / "one.wav"), str(clips / "two.flac")]
    assert main(["convert", *recordings, "-o", str(out), "--audio-format", "mp3", "--quiet", *BABBLE]) == 0
    assert capsys.readouterr().out == ""
    lengths = {path.name: len(decode_audio(path)[0]) / RATE for path in out.iterdir()}
    assert sorted(lengths) == ["one.mp3", "two.mp3"] and abs(lengths["two.mp3"] - 2) < 0.1
    assert main(["convert", recordings[0], "-o", str(out), *BABBLE]) == 0  # a directory serves for one, too
    assert (out / "one.wav").exists()


def test_what_fails_does_not_harm_the_others(babbler: Path, clips: Path, tmp_path: Path, refused) -> None:
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no audio")
    message = refused(clips / "one.wav", noise, "-o", tmp_path / "out", "--quiet", *BABBLE)
    assert "1 of 2 recordings could not be converted" in message and "noise.wav: cannot be decoded" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one.wav"]


def test_from_standard_input_to_standard_output(babbler: Path, clips: Path) -> None:
    words = ["convert", "-", "-o", "-", "--seed", "1", *BABBLE]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "chatterbox_vllm", *words],
        input=(clips / "one.wav").read_bytes(),
        capture_output=True,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.decode() == "-: 1.20 s, seed 1\n"
    assert ran.stdout[:4] == b"RIFF" and len(ran.stdout) == 44 + 2 * round(1.2 * RATE)


def test_voices_by_name(babbler: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    monkeypatch.setenv("CHATTERBOX_VOICES", str(tmp_path / "voices"))
    assert main(["voices", "add", str(clips / "voice.ogg"), "ada", "--model", "babble", "--quiet"]) == 0
    for voice in ("ada", "builtin"):
        out = tmp_path / f"{voice}.flac"
        assert main(["convert", str(clips / "one.wav"), "-o", str(out), "--voice", voice, "--quiet", *BABBLE]) == 0
        assert out.exists()
    assert "nobody" in refused(clips / "one.wav", "-o", tmp_path / "x.wav", "--voice", "nobody", *BABBLE)


def test_what_is_refused_before_anything_is_loaded(clips: Path, tmp_path: Path, refused) -> None:
    one, two = clips / "one.wav", clips / "two.flac"
    assert "no such file" in refused(tmp_path / "none.wav", "-o", tmp_path / "x.wav", *BABBLE)
    assert "2 recordings need a directory" in refused(one, two, "-o", tmp_path / "x.wav", *BABBLE)
    assert "2 recordings need a directory" in refused(one, two, "-o", "-", *BABBLE)
    twin = tmp_path / "one.wav"
    twin.write_bytes(one.read_bytes())
    assert "would both become" in refused(one, twin, "-o", tmp_path / "out", *BABBLE)
    assert "would be written over" in refused(one, two, "-o", clips, *BABBLE)
    assert "unknown audio suffix" in refused(one, "-o", tmp_path / "x.txt", *BABBLE)
    assert "--diffusion-steps must be an integer from 1 to 100" in refused(
        one, "-o", tmp_path / "x.wav", "--model", "babble", "--diffusion-steps", "0"
    )
    assert "No such option" in refused(one, "-o", tmp_path / "x.wav", "--temperature", "0.5")
    assert "Missing" in refused(one)


def test_quantized(babbler: Path, clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "out.wav"
    words = ["convert", str(clips / "one.wav"), "-o", str(out), "--quiet", "--quantize-s3gen", "bnb-8bit", *BABBLE]
    assert main(words) == 0 and out.exists()
