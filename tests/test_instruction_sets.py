"""The same model on a lower instruction set: what an AVX2-only CPU would run, on whatever CPU this is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm")

from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.quantize import quantize_model

OPTIONS = {"max_model_len": 256, "max_batch_size": 1, "watermark": False}
TEXT, TOKENS, SEED = "Hello there.", 30, 3
# For torch's own kernels and for oneDNN; vLLM asks torch, which the script answers for.
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

# Arguments: directory of the model, file for the waveform.
SCRIPT = f"""
import json, sys
import torch

for name in ("_is_amx_tile_supported", "_is_amx_fp16_supported", "_is_avx512_supported", "_is_avx512_bf16_supported",
             "_is_vnni_supported"):
    setattr(torch.cpu, name, lambda: False)

import numpy as np
from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest

with ChatterboxTTS.from_local(sys.argv[1], "cpu", **{OPTIONS!r}) as tts:
    (result,) = tts.run([SpeechRequest({TEXT!r}, parameters=SpeechParameters(max_tokens={TOKENS}), seed={SEED})])
    np.save(sys.argv[2], result.audio.numpy())
    print(json.dumps({{
        "torch": torch.backends.cpu.get_cpu_capability(),
        "vllm_needs_avx512": hasattr(torch.ops._C, "cpu_gemm_wna16"),
        "t3": tts.get_quantization_info()["t3"],
        "tokens": result.speech_tokens.tolist(),
    }}))
"""


def speak_on_avx2(directory: Path, wave: Path) -> dict:
    """In a process of its own, since kernels are chosen once."""
    command = [sys.executable, "-c", SCRIPT, str(directory), str(wave)]
    run = subprocess.run(command, env=os.environ | AVX2, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["torch"] == "AVX2" and not said["vllm_needs_avx512"]
    return said


def test_speech_is_the_same(demo: Path, tmp_path: Path) -> None:
    lower = speak_on_avx2(demo, tmp_path / "lower.npy")
    with ChatterboxTTS.from_local(demo, "cpu", **OPTIONS) as tts:
        (here,) = tts.run([SpeechRequest(TEXT, parameters=SpeechParameters(max_tokens=TOKENS), seed=SEED)])
    assert lower["tokens"] == here.speech_tokens.tolist()
    wave, there = here.audio.numpy(), np.load(tmp_path / "lower.npy")
    # As far as phase, a sum of pitch, lets two CPUs be apart.
    assert np.linalg.norm(wave - there) < 5e-3 * np.linalg.norm(wave)


def test_awq_speaks(demo: Path, tmp_path: Path) -> None:
    """vLLM's own kernel for it is not there without AVX-512."""
    quantize_model(demo, tmp_path / "awq", QuantizationConfig("awq"), texts=("The parcel left on Thursday.",))
    lower = speak_on_avx2(tmp_path / "awq", tmp_path / "lower.npy")
    assert lower["t3"]["method"] == "awq" and lower["t3"]["quantized_layers"] == lower["t3"]["linear_layers"]
    assert 0.5 < lower["t3"]["bytes_per_weight"] < 0.54
    wave = np.load(tmp_path / "lower.npy")
    assert np.isfinite(wave).all() and np.abs(wave).max() > 0.01
