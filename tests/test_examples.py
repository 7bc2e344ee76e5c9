"""The examples as their user runs them, on the babbling model."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from .made_up_clips import babble

pytest.importorskip("vllm")
pytest.importorskip("bitsandbytes")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of noise that is loud and soft in turn."""
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, babble(2), 24_000)
    return path


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {name for name in os.environ if name.startswith("CHATTERBOX_")} - {"CHATTERBOX_VLLM_CACHE"}:
        monkeypatch.delenv(name)


def run(*arguments: object) -> subprocess.CompletedProcess:
    """The example that measures itself, in a process of its own."""
    command = [sys.executable, ROOT / "example-tts-ultra-low-vram.py", "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def test_ultra_low_vram(babbler: Path, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "said.wav"
    done = run("--model", babbler, "--clip", clip, "--seed", 1, "-o", output, "Hello.")
    assert done.returncode == 0, done.stderr
    # The voice encoder is in memory because a clip was enrolled.
    for component, method in (("t3", "bnb-4bit"), ("s3gen", "bnb-4bit"), ("voice_encoder", "-")):
        assert re.search(rf"^{component} +{method} +\d+ of \d+ ", done.stdout, re.MULTILINE), done.stdout
    wave, rate = soundfile.read(output)
    assert rate == 24_000 and abs(wave).max() > 0.01
    assert f"said.wav: {len(wave) / rate:.2f} s of speech" in done.stdout
    estimate, measured = (int(n) for n in re.findall(r"^(?:estimate|measured): (\d+) MiB", done.stdout, re.MULTILINE))
    assert estimate > 100 and measured > 300  # Python, PyTorch and vLLM alone take that


def test_ultra_low_vram_refuses_in_one_line(babbler: Path, tmp_path: Path) -> None:
    done = run("--model", babbler, "-o", tmp_path / "said.xyz")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().splitlines()[-1].startswith("error: ") and "said.xyz" in done.stderr
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []


def test_quantized(
    babbler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--model", str(babbler), "-d", str(tmp_path / "said")]
    monkeypatch.setattr(sys, "argv", ["example_tts_quantized.py", *words])
    runpy.run_path(str(ROOT / "example_tts_quantized.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "bnb-4bit for t3: yes" in printed
    assert "fp8 for s3gen: fp8 is made for T3 only" in printed
    assert "refused: awq needs weights that were calibrated beforehand" in printed
    assert re.search(r"^quantize --method awq: t3_cfg.safetensors takes [\d.]+ MiB", printed, re.MULTILINE)

    rows = re.findall(r"^(\S.*?) +>?([\d.]+) +([\d.]+)  t3 (\S+), s3gen (.+)$", printed, re.MULTILINE)
    found = {name: (float(t3), float(s3gen), f"{first} {rest}") for name, t3, s3gen, first, rest in rows}
    expected = {
        "nothing asked for": "- -",
        'use_quantization=True, quantization_method="bnb-8bit"': "bnb-8bit -",
        "use_bnb_quantization=True, quantize_s3gen=True, quantize_voice_encoder=True": "bnb-4bit bnb-4bit",
        'quantization=QuantizationConfig(s3gen="bnb-8bit")': "- bnb-8bit",
        'quantization_strategy="conservative"': "bnb-8bit bnb-8bit",
        'quantization_strategy="mixed"': "bnb-4bit bnb-8bit",
        'quantization_strategy="aggressive"': "bnb-4bit bnb-4bit",
        'quantization_strategy="auto"': "bnb-8bit bnb-8bit",
        "CHATTERBOX_USE_QUANTIZATION=1 CHATTERBOX_QUANTIZATION_METHOD=bnb-4bit": "bnb-4bit -",
        'quantization_method="awq", fallback=True': "bnb-4bit -; stepped down: T3 in bnb-4bit",
        "a directory in bnb-4bit": "bnb-4bit -",
        "a directory in awq": "awq -",
    }
    assert {name: row[2] for name, row in found.items()} == expected
    # Fewer bits, fewer bytes, of both components.
    int8, nf4 = (found[f'quantization_strategy="{name}"'] for name in ("conservative", "aggressive"))
    assert int8[0] > nf4[0] and found["nothing asked for"][1] > int8[1] > nf4[1]
    assert len(list((tmp_path / "said").glob("*.wav"))) == len(expected)
