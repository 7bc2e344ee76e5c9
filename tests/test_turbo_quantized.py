"""T3 on GPT-2 quantized inside vLLM's CPU engine: logits are those of the dequantized weights, loading or from disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")
pytest.importorskip("bitsandbytes")

from chatterbox_vllm import ChatterboxTTS
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.babble_turbo import BABBLE_TURBO_CONFIG
from chatterbox_vllm.families.turbo import TURBO
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.files import stored_quantization
from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.setup.quantize import quantize_model
from chatterbox_vllm.setup.tiers import Plan
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.file import QuantizedT3
from chatterbox_vllm.t3.vllm.forcing import ForcedTokens
from chatterbox_vllm.t3.vllm.stage import T3Options, T3Stage

CONFIG = BABBLE_TURBO_CONFIG.t3
METHODS = ("bnb-4bit", "bnb-8bit", "awq")
TOKENS = tuple(range(40, 52))
TEXTS = ("The parcel left the warehouse on Thursday.", "Why would anybody paint a lighthouse green?")


@pytest.fixture(scope="module")
def made(turbo_babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The babbler quantized to disk by every method."""
    root = tmp_path_factory.mktemp("quantized")
    for method in METHODS:
        other = None if method == "awq" else method
        quantize_model(turbo_babbler, root / method, QuantizationConfig(method, other, other), texts=TEXTS)
    return {method: root / method for method in METHODS}


@pytest.fixture(scope="module")
def prompt(turbo_babbler: Path) -> torch.Tensor:
    builder = TURBO.read_prompt_builder(CONFIG, Weights(turbo_babbler / TURBO.t3))
    generator = torch.Generator().manual_seed(1)
    speaker = torch.nn.functional.normalize(torch.randn(1, CONFIG.speaker_embedding_size, generator=generator))
    speech = torch.randint(0, 6561, (CONFIG.speech_prompt_tokens,), generator=generator)
    return builder.prompt(builder.conditioning(speaker, speech, 0.0), list(range(60, 90)))


def logits(directory: Path, prompt: torch.Tensor, dtype: torch.dtype, method: str | None = None) -> torch.Tensor:
    """[n, V] that the engine says `TOKENS` with, every linear layer quantized as its file or `method` says."""
    weights = Weights(directory / TURBO.t3)
    options = T3Options(
        dtype, max_model_len=256, max_batch_size=2, cuda_graphs=False, quantization=method, teacher_forcing=True
    )
    stage = T3Stage(CONFIG, weights, options, torch.device("cpu"))
    try:
        stored = stored_quantization(weights)
        info = stage.quantization
        assert info.method == (method if stored is None else stored.method)
        assert info.linear_layers == 4 * CONFIG.num_layers == info.quantized_layers or info.method is None
        forced = ForcedTokens(TOKENS, CONFIG.speech_vocab_size)
        sampling = TURBO.defaults.sampling
        stage.add("one", prompt, type(sampling)(**vars(sampling) | {"max_tokens": len(TOKENS)}), 0, forced=forced)
        while stage.unfinished:
            stage.step()
        return forced.logits
    finally:
        stage.close()


def plain_logits(model: PlainT3, directory: Path, prompt: torch.Tensor) -> torch.Tensor:
    builder = TURBO.read_prompt_builder(CONFIG, Weights(directory / TURBO.t3))
    (found,) = model.teacher_forced([model.embed(builder, prompt, TOKENS[:-1])])
    return found[0, len(prompt) - 1 :]


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, without the ids whose logits the babbler sets by hand."""
    got, wanted = got[:, :6561].float(), wanted[:, :6561].float()
    return float((got - wanted).norm() / wanted.norm())


def test_plain_torch_is_what_vllm_computes(turbo_babbler: Path, prompt: torch.Tensor) -> None:
    weights = Weights(turbo_babbler / TURBO.t3)
    exact = plain_logits(PlainT3(CONFIG, weights), turbo_babbler, prompt)
    assert error(logits(turbo_babbler, prompt, torch.float32), exact) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_dequantized_weights(
    turbo_babbler: Path, made: dict[str, Path], prompt: torch.Tensor, method: str
) -> None:
    stored = Weights(made[method] / TURBO.t3)
    part = stored_quantization(stored)
    assert part is not None and part.method == method
    found = logits(made[method], prompt, torch.bfloat16)
    near = error(found, plain_logits(QuantizedT3(CONFIG, stored, part), made[method], prompt))
    far = error(found, plain_logits(PlainT3(CONFIG, Weights(turbo_babbler / TURBO.t3)), turbo_babbler, prompt))
    # Half precision's noise, while the unquantized weights are further off.
    assert near < 0.02
    assert far > (near if method == "bnb-8bit" else 3 * near)
    if method != "awq":
        assert torch.equal(logits(turbo_babbler, prompt, torch.bfloat16, method), found)


@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_model_speaks_and_tells_its_methods(made: dict[str, Path], method: str) -> None:
    with ChatterboxTTS.from_local(made[method], "cpu") as tts:
        audio = tts.generate("Hello there. [chuckle]", seed=1)
        info = tts.get_quantization_info()
    assert 1 < audio.shape[1] / tts.sr < 6 and audio.abs().max() > 0.01
    assert info["t3"]["method"] == method and info["s3gen"]["method"] == (None if method == "awq" else method)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_the_estimate_knows_a_layers_weights(turbo_babbler: Path, made: dict[str, Path], method: str | None) -> None:
    width, mlp = CONFIG.hidden_size, CONFIG.intermediate_size
    weights = CONFIG.num_layers * (4 * width * width + 2 * width * mlp)
    directory = turbo_babbler if method is None else made[method]
    found = QuantizationMemoryEstimator(directory).estimate(Plan()).device["T3 linear layers"]
    bytes_each = {None: 2, "bnb-8bit": 1, "bnb-4bit": 0.52, "awq": 0.52}[method]
    assert found == pytest.approx(weights * bytes_each, rel=0.02)
