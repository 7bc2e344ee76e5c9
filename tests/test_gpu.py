"""On a CUDA GPU, at full size: the engine with CUDA graphs, S3Gen in float32 and float16. Run with `-m gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest
from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cuda.streams import Urgency
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest

from .parity.conftest import checkpoint_dir, goldens  # noqa: F401 (fixtures)
from .parity.test_t3 import add, drain, prompt_of

pytestmark = pytest.mark.gpu

TEXT = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def float32(checkpoint_dir: Path) -> Iterator[ChatterboxTTS]:  # noqa: F811
    with ChatterboxTTS.from_local(
        checkpoint_dir, "cuda", dtype="float32", s3gen_dtype="float32", max_model_len=512, watermark=False
    ) as tts:
        yield tts


def check_goldens(tts: ChatterboxTTS, goldens: Any) -> None:  # noqa: F811
    golden, cases = goldens.arrays("t3_english"), goldens.json("t3_english")["cases"]
    builder = tts._engine.scheduler.preparation.prompts.builder
    for case in cases:
        add(tts.t3_stage, case, prompt_of(case, builder, golden), case["n"])
    tokens = drain(tts.t3_stage)
    assert [c["key"] for c in cases if tokens[c["key"]] != golden[f"{c['key']}_tokens"].tolist()] == []


def test_goldens_under_cuda_graphs(float32: ChatterboxTTS, goldens: Any) -> None:  # noqa: F811
    check_goldens(float32, goldens)


def test_goldens_several_steps_at_a_time(checkpoint_dir: Path, goldens: Any) -> None:  # noqa: F811
    with ChatterboxTTS.from_local(
        checkpoint_dir, "cuda", dtype="float32", max_model_len=512, multi_step=8, watermark=False
    ) as tts:
        check_goldens(tts, goldens)


def test_t3_goes_first_on_the_card(float32: ChatterboxTTS) -> None:
    stream = float32.t3_stage._stream
    assert stream is not None and stream.priority == Urgency.HIGHEST


def test_half_precision_flow_is_near_float32(float32: ChatterboxTTS) -> None:
    model = float32.s3gen_stage.model
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 6561, 100))
    noise = model.draw_noise(1, len(tokens), float32.voice.prompt)
    request = S3GenRequest(tokens, float32.voice.prompt, noise)
    (exact,) = model.mel([request])
    weights = Weights(float32.directory / "s3gen.safetensors")
    for dtype, bound in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        (half,) = S3Gen.from_weights(S3GenConfig(), weights, "cuda", dtype).mel([request])
        assert (half - exact).norm() / exact.norm() < bound


def test_same_seed_alone_and_in_a_batch(float32: ChatterboxTTS) -> None:
    def speak(count: int) -> dict[int, Any]:
        requests = [
            SpeechRequest(TEXT * (1 + i % 3), float32.conds, SpeechParameters(seed=i, max_tokens=60))
            for i in range(count)
        ]
        return {result.index: result for result in float32.run(requests)}

    alone, together = speak(1)[0], speak(32)[0]
    assert alone.speech_tokens == together.speech_tokens
    # Utterances go through S3Gen one by one; what is left is cuDNN's, which sums in no fixed order.
    assert (alone.audio - together.audio).norm() / alone.audio.norm() < 1e-4


def test_bfloat16_speaks(checkpoint_dir: Path) -> None:  # noqa: F811
    with ChatterboxTTS.from_local(
        checkpoint_dir, "cuda", s3gen_dtype="float16", max_model_len=512, watermark=False
    ) as tts:
        assert next(tts.t3_stage.model.parameters()).dtype == torch.bfloat16
        wave = tts.generate(TEXT, seed=1, max_tokens=100)
    assert torch.isfinite(wave).all() and 0.01 < wave.abs().max() < 1


DETERMINISTIC = """
import json, sys
from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest
with ChatterboxTTS.from_local(sys.argv[1], "cuda", deterministic=True, max_batch_size=32, watermark=False) as tts:
    def tokens(seeds):
        requests = [
            SpeechRequest("The quick brown fox. " * (1 + i % 5), tts.conds, SpeechParameters(seed=i, max_tokens=150))
            for i in seeds
        ]
        return {seeds[r.index]: r.speech_tokens for r in tts.run(requests)}
    # The longest grow beyond a tile of attention while the others begin.
    alone = {i: tokens([i])[i] for i in (0, 1, 2, 3, 4, 9, 14, 29)}
    together = [tokens(range(32)) for _ in range(2)]
    print(json.dumps([i for i in alone if any(said[i] != alone[i] for said in together)]))
"""


def test_deterministic_tokens_do_not_depend_on_the_batch(checkpoint_dir: Path) -> None:  # noqa: F811
    done = subprocess.run(
        [sys.executable, "-c", DETERMINISTIC, str(checkpoint_dir)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
