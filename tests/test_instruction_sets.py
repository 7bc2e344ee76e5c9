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

# Arguments: for each model its directory and the file for its waveform.
SCRIPT = f"""
import json, sys
import torch

for name in ("_is_amx_tile_supported", "_is_amx_fp16_supported", "_is_avx512_supported", "_is_avx512_bf16_supported",
             "_is_vnni_supported"):
    setattr(torch.cpu, name, lambda: False)

import numpy as np
from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest

said = []
for directory, wave in zip(sys.argv[1::2], sys.argv[2::2]):
    with ChatterboxTTS.from_local(directory, "cpu", **{OPTIONS!r}) as tts:
        (result,) = tts.run([SpeechRequest({TEXT!r}, tts.conds, SpeechParameters(seed={SEED}, max_tokens={TOKENS}))])
        np.save(wave, result.audio.numpy())
        said.append({{"t3": tts.get_quantization_info()["t3"], "tokens": list(result.speech_tokens)}})
assert torch.backends.cpu.get_cpu_capability() == "AVX2", torch.backends.cpu.get_cpu_capability()
assert not hasattr(torch.ops._C, "cpu_gemm_wna16"), "vLLM's kernels for AVX-512 are loaded"
print(json.dumps(said))
"""


def test_avx2_alone(babbler: Path, tmp_path: Path) -> None:
    """In a process of its own, since kernels are chosen once: the same speech, and AWQ, which vLLM cannot do there."""
    quantize_model(babbler, tmp_path / "awq", QuantizationConfig("awq"), texts=("The parcel left on Thursday.",))
    waves = [tmp_path / "plain.npy", tmp_path / "awq.npy"]
    command = [sys.executable, "-c", SCRIPT, str(babbler), str(waves[0]), str(tmp_path / "awq"), str(waves[1])]
    run = subprocess.run(command, env=os.environ | AVX2, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    plain, awq = json.loads(run.stdout.splitlines()[-1])

    with ChatterboxTTS.from_local(babbler, "cpu", **OPTIONS) as tts:
        (here,) = tts.run([SpeechRequest(TEXT, tts.conds, SpeechParameters(seed=SEED, max_tokens=TOKENS))])
    assert tuple(plain["tokens"]) == here.speech_tokens and plain["t3"]["method"] is None
    wave, there = here.audio.numpy(), np.load(waves[0])
    # As far as phase, a sum of pitch, lets two CPUs be apart.
    assert np.linalg.norm(wave - there) < 5e-3 * np.linalg.norm(wave)

    assert awq["t3"]["method"] == "awq" and awq["t3"]["quantized_layers"] == awq["t3"]["linear_layers"]
    assert 0.5 < awq["t3"]["bytes_per_weight"] < 0.54
    wave = np.load(waves[1])
    assert np.isfinite(wave).all() and np.abs(wave).max() > 0.01
