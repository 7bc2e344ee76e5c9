"""T3 quantized on a CUDA GPU, under torch.compile and CUDA graphs, at the babbling model's size. Run with `-m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("vllm")
pytest.importorskip("bitsandbytes")

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.quantization.files import stored_quantization
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.file import QuantizedT3

from .test_quantized_t3 import (  # noqa: F401 (fixtures)
    FILE,
    config,
    error,
    forced,
    made,
    prompt,
    quantized_layers,
    speak,
    talker,
)

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("method", "dtype", "noise"),
    [
        ("bnb-4bit", torch.bfloat16, 0.02),
        ("bnb-4bit", torch.float16, 0.01),
        ("bnb-8bit", torch.bfloat16, 0.02),
        ("bnb-8bit", torch.float16, 0.01),
        ("awq", torch.bfloat16, 0.02),
        ("awq", torch.float16, 0.01),
    ],
)
def test_logits_under_cuda_graphs(
    made: dict[str, Path],  # noqa: F811
    config: T3Config,  # noqa: F811
    prompt: torch.Tensor,  # noqa: F811
    method: str,
    dtype: torch.dtype,
    noise: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with talker(made[method], dtype, method, CUDA) as stage:
        tokens, logits = speak(stage, prompt, monkeypatch)
    stored = Weights(made[method] / FILE)
    part = stored_quantization(stored)
    assert part is not None
    builder = PromptBuilder.from_weights(config, stored)
    assert error(logits, forced(QuantizedT3(config, stored, part), builder, prompt, tokens)) < noise


def test_fp8(
    babbler: Path,
    config: T3Config,  # noqa: F811
    prompt: torch.Tensor,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with talker(babbler, torch.bfloat16, "fp8", CUDA) as stage:
        dtypes = {layer.weight.dtype for layer in quantized_layers(stage).values()}
        tokens, logits = speak(stage, prompt, monkeypatch)
    assert dtypes == {torch.float8_e4m3fn}
    weights = Weights(babbler / FILE)
    builder = PromptBuilder.from_weights(config, weights)
    assert error(logits, forced(PlainT3(config, weights), builder, prompt, tokens)) < 0.15


@pytest.mark.parametrize("method", ["bnb-4bit", "bnb-8bit"])
def test_never_more_than_a_layer_in_full(
    babbler: Path,
    config: T3Config,  # noqa: F811
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    excess: list[int] = []
    load = BaseModelLoader.load_model

    def watched(*args: object, **kwargs: object) -> nn.Module:
        torch.cuda.reset_peak_memory_stats()
        model = load(*args, **kwargs)
        excess.append(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())
        return model

    monkeypatch.setattr(BaseModelLoader, "load_model", watched)
    with talker(babbler, torch.bfloat16, method, CUDA):
        pass
    largest_layer = 4 * 2 * config.intermediate_size * config.hidden_size
    assert 0 < excess[0] < 5 * largest_layer
