"""AWQ's layout and search on small layers, and what calibration gains on inputs that it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from chatterbox_vllm.checkpoint.config import QuantizedPart, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.babble import BABBLE_CONFIG
from chatterbox_vllm.t3.backbone import Layer
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.llama import LINEARS, Llama
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.awq import Utterance, gather, quantize_t3_awq
from chatterbox_vllm.t3.quantization.awq_layout import awq_layout, dequantize_awq, quantize_awq, rounded
from chatterbox_vllm.t3.quantization.awq_search import search_layer
from chatterbox_vllm.t3.quantization.file import QuantizedT3

FILE = "t3_cfg.safetensors"
CONFIG = BABBLE_CONFIG.t3


@pytest.fixture(scope="module")
def model(babbler: Path) -> PlainT3:
    return PlainT3(CONFIG, Weights(babbler / FILE))


@pytest.fixture(scope="module")
def builder(babbler: Path) -> PromptBuilder:
    return PromptBuilder.from_weights(CONFIG, Weights(babbler / FILE))


def utterances(builder: PromptBuilder, seed: int, count: int) -> list[Utterance]:
    """Prompts of random voices and texts, with random speech."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, size: int) -> list[int]:
        return torch.randint(1, high, (size,), generator=generator).tolist()

    made = []
    for _ in range(count):
        speaker = F.normalize(torch.randn(1, CONFIG.speaker_embedding_size, generator=generator))
        conditioning = builder.conditioning(speaker, torch.tensor(draw(6561, 150)), 0.5)
        made.append(Utterance(builder.prompt(conditioning, draw(255, 40)), tuple(draw(6561, 60))))
    return made


def test_layout_as_published() -> None:
    """One group by hand: what each nibble holds, in the order that AutoAWQ's GEMM kernels read."""
    weight = torch.zeros(32, 128)
    weight[:, 0], weight[:, 1] = -7.0, 8.0  # a range of 15: scale 1, zero point 7
    weight[:8, 2] = torch.arange(8) - 7.0  # row i holds i
    packed = quantize_awq(weight)
    assert {name: (tuple(t.shape), t.dtype) for name, t in packed.items()} == awq_layout(32, 128)
    assert (packed["scales"] == 1).all() and (packed["qzeros"] == 0x77777777).all()
    nibbles = [int(packed["qweight"][2, 0]) >> 4 * i & 15 for i in range(8)]
    assert nibbles == [0, 2, 4, 6, 1, 3, 5, 7]
    torch.testing.assert_close(dequantize_awq(packed), weight, rtol=0, atol=0)


def test_rounding_is_what_is_stored() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator) / 16
    weight[3] = weight[3].abs() + 1  # a group without zero in its range
    weight[5] = 0
    for shrink in (1.0, torch.rand(64, 2, generator=generator) / 2 + 0.5):
        torch.testing.assert_close(dequantize_awq(quantize_awq(weight, shrink)), rounded(weight, shrink))
    plain = rounded(weight)
    steps = (
        weight.unflatten(1, (2, -1)).amax(-1).clamp(min=0) - weight.unflatten(1, (2, -1)).amin(-1).clamp(max=0)
    ) / 15
    assert ((plain - weight).abs() <= 0.52 * steps.repeat_interleave(128, 1) + 1e-6).all()
    with pytest.raises(ConfigError, match="128 wide"):
        awq_layout(64, 192)


def test_scales_fold_without_changing_the_layer(model: PlainT3, builder: PromptBuilder) -> None:
    rows = [model.embed(builder, u.prompt, u.tokens) for u in utterances(builder, 1, 2)]
    layer = model.layer(1)
    moments, after = gather(model, layer, rows)
    found = search_layer(Llama(), layer, moments)
    assert all(not torch.equal(found.layer[name], layer[name]) for name in layer)
    for x, wanted in zip(rows, after, strict=True):
        torch.testing.assert_close(model.run_layer(found.layer, x), wanted, rtol=1e-4, atol=1e-4)


def outlying(layer: Layer) -> Layer:
    """A layer whose norms single a few channels out, as trained transformers' do."""
    layer = dict(layer)
    for name in ("input_layernorm", "post_attention_layernorm"):
        layer[name] = layer[name].clone()
        layer[name][::37] *= 20
    return layer


@pytest.mark.parametrize("change", [dict, outlying])
def test_calibration_beats_rounding_on_unseen_inputs(model: PlainT3, builder: PromptBuilder, change) -> None:
    seen, unseen = ([model.embed(builder, u.prompt, u.tokens) for u in utterances(builder, seed, 6)] for seed in (1, 2))
    layer = change(model.layer(0))
    found = search_layer(Llama(), layer, gather(model, layer, seen)[0])
    calibrated = found.layer | {name: rounded(found.layer[name], found.shrinks[name]) for name in LINEARS}
    nearest = layer | {name: rounded(layer[name]) for name in LINEARS}

    def loss(quantized: Layer) -> float:
        return sum(float((model.run_layer(quantized, x) - model.run_layer(layer, x)).square().sum()) for x in unseen)

    assert loss(calibrated) < (0.9 if change is dict else 0.5) * loss(nearest)


def test_whole_model(babbler: Path, model: PlainT3, builder: PromptBuilder, tmp_path: Path) -> None:
    done = []
    tensors = quantize_t3_awq(
        CONFIG, Weights(babbler / FILE), utterances(builder, 1, 4), progress=lambda n, total: done.append((n, total))
    )
    assert done == [(i + 1, CONFIG.num_layers) for i in range(CONFIG.num_layers)]
    assert not any(key.endswith("_proj.weight") for key in tensors)
    save_file(tensors, tmp_path / FILE)
    candidate = QuantizedT3(CONFIG, Weights(tmp_path / FILE), QuantizedPart("awq"))

    class Nearest(PlainT3):
        def layer(self, index: int) -> Layer:
            layer = super().layer(index)
            return layer | {name: rounded(layer[name]) for name in LINEARS}

    rows = [model.embed(builder, u.prompt, u.tokens) for u in utterances(builder, 2, 4)]

    def divergence(other: PlainT3) -> float:
        pairs = zip(model.teacher_forced(rows), other.teacher_forced(rows), strict=True)
        return sum(
            float(F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="batchmean"))
            for a, b in pairs
        )

    assert divergence(candidate) < 0.85 * divergence(Nearest(CONFIG, Weights(babbler / FILE)))


def test_sizes_that_do_not_fit(tmp_path: Path, babbler: Path) -> None:
    with pytest.raises(CheckpointError, match=r"t3_cfg.*shape"):
        quantize_t3_awq(T3Config(num_layers=1), Weights(babbler / FILE), [])
