"""Turbo and Nano on a CUDA GPU, at full size: goldens under CUDA graphs, half precision, quantization. `-m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.quantize import quantize_model

from .parity.conftest import checkpoint_dir, goldens, nano_dir, turbo_dir  # noqa: F401 (fixtures)
from .parity.test_t3 import drain
from .parity.test_turbo import add, prompt_of

pytestmark = pytest.mark.gpu

TEXT = "The quick brown fox jumps over the lazy dog. [laugh] It does so once more."


@pytest.mark.parametrize(("name", "multi_step"), [("turbo", 1), ("nano", 1), ("nano", 8)])
def test_goldens_under_cuda_graphs(name: str, multi_step: int, goldens: Any, request: pytest.FixtureRequest) -> None:  # noqa: F811
    golden, cases = goldens.arrays(f"t3_{name}"), goldens.json(f"t3_{name}")["cases"]
    directory = request.getfixturevalue(f"{name}_dir")
    with ChatterboxTTS.from_local(
        directory,
        "cuda",
        dtype="float32",
        s3gen_dtype="float32",
        max_model_len=640,
        multi_step=multi_step,
        watermark=False,
    ) as tts:
        builder = tts._engine.scheduler.preparation.prompts.builder
        for case in cases:
            add(tts, case, prompt_of(case, builder, golden), case["n"])
        tokens = drain(tts.t3_stage)
    assert [c["key"] for c in cases if tokens[c["key"]] != golden[f"{c['key']}_tokens"].tolist()] == []


def check_speech(tts: ChatterboxTTS) -> None:
    """Alone, in a batch and as a stream."""
    requests = [SpeechRequest(TEXT, tts.voice, SpeechParameters(seed=i, max_tokens=60)) for i in range(8)]
    for result in tts.run(requests):
        assert result.error is None and result.audio is not None and torch.isfinite(result.audio).all()
        assert 0.01 < result.audio.abs().max() <= 1
    *chunks, last = tts.stream(requests[0])
    assert last.error is None and last.samples == sum(len(chunk.audio) for chunk in chunks) > 0


@pytest.mark.parametrize("method", [None, "bnb-4bit", "bnb-8bit", "fp8"])
def test_half_precision_speaks(turbo_dir: Path, method: str | None) -> None:  # noqa: F811
    flow = method if method in ("bnb-4bit", "bnb-8bit") else None
    config = QuantizationConfig(method, flow, flow)
    with ChatterboxTTS.from_local(turbo_dir, "cuda", max_model_len=1024, quantization=config, watermark=False) as tts:
        assert next(tts.t3_stage.model.parameters()).dtype in (torch.bfloat16, torch.float16)  # a norm
        info = tts.get_quantization_info()
        assert info["t3"]["method"] == method and info["s3gen"]["method"] == flow
        check_speech(tts)


def test_awq_speaks(turbo_babbler: Path, tmp_path: Path) -> None:
    quantize_model(turbo_babbler, tmp_path / "awq", QuantizationConfig("awq"), device="cuda")
    with ChatterboxTTS.from_local(tmp_path / "awq", "cuda", watermark=False) as tts:
        assert tts.get_quantization_info()["t3"]["method"] == "awq"
        check_speech(tts)


def test_texts_of_one_voice_share_what_they_read(turbo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    from chatterbox_vllm.t3.vllm import attention

    found: list[torch.Tensor] = []
    find = attention.find_shared

    def noting(*args: Any) -> None:
        find(*args)
        found.append(args[-1].lengths.clone())

    monkeypatch.setattr(attention, "find_shared", noting)
    with ChatterboxTTS.from_local(turbo_dir, "cuda", max_model_len=640, max_batch_size=48, watermark=False) as tts:
        requests = [SpeechRequest(f"{TEXT} {i}", tts.voice, SpeechParameters(seed=i, max_tokens=40)) for i in range(40)]
        assert all(result.error is None and result.samples for result in tts.run(requests))
        # Of 376 places of conditioning, 23 blocks of 16 are full; the texts begin alike, too.
        assert max(int(lengths.max()) for lengths in found) >= 368
