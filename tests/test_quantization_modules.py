"""Quantized layers of plain modules: real bytes, bounded errors, layer by layer while loading, bit for bit in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from chatterbox_vllm.checkpoint.config import S3GenConfig, VoiceEncoderConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.cpu.linear import linear as product
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.quantized_files import (
    published_keys_replaced,
    quantized_file_layout,
    quantized_file_tensors,
)
from chatterbox_vllm.quantization.modules import (
    QuantizedLinear,
    QuantizedLSTM,
    QuantizedModule,
    quantize_layers,
    state_tensors,
)
from chatterbox_vllm.quantization.storage import NF4, Int8, QuantizedMatrix, Scheme, scheme_of
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder

from . import test_s3gen as tiny
from .reasons import NO_TRITON

pytest.importorskip("bitsandbytes")

SCHEMES = [Int8(), NF4(), NF4(double_quant=False)]
# Relative L2 error of a Gaussian matrix: measured 0.75 % and 9.2 %.
ERRORS = {"bnb-8bit": (0.004, 0.009), "bnb-4bit": (0.08, 0.10)}
# Bytes of a weight at the published size; the flow's narrowest matrices have rows of 256.
MOST_BYTES = {Int8(): 1.01, NF4(): 0.53, NF4(double_quant=False): 0.57}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def held_bytes(tensors: Any) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(192, 256), (7, 40), (16, 16)])
def test_a_matrix(scheme: Scheme, shape: tuple[int, int]) -> None:
    floats = gaussian(*shape)
    matrix = QuantizedMatrix.of(floats, scheme)
    assert {n: (tuple(t.shape), t.dtype) for n, t in matrix.tensors.items()} == scheme.layout(shape)
    assert held_bytes(matrix.tensors.values()) == scheme.stored_bytes(shape)
    lowest, highest = ERRORS[scheme.method]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        values = matrix.dequantized(dtype)
        assert values.dtype == dtype and values.shape == shape
        if shape[1] == 256:
            assert lowest < tiny.apart(values.float(), floats) < highest


def test_int8_keeps_the_range_of_every_row() -> None:
    floats = gaussian(64, 128) * torch.logspace(-12, 12, 64)[:, None]
    floats[3] = 0
    matrix = QuantizedMatrix.of(floats, Int8())
    assert matrix.tensors["codes"].abs().max() <= 127
    back = matrix.dequantized(torch.float32)
    largest = floats.abs().amax(1, keepdim=True)
    # Half a step of the scale, which is at most 0.8 % above what the row needs.
    assert bool(((back - floats).abs() <= largest / 127 * 0.505).all())
    assert not back[3].any()


def test_nf4_is_that_of_the_library() -> None:
    import bitsandbytes.functional as library

    floats = gaussian(96, 128)
    packed, state = library.quantize_4bit(floats, blocksize=64, compress_statistics=True, quant_type="nf4")
    matrix = QuantizedMatrix.of(floats, NF4())
    assert torch.equal(matrix.tensors["packed"], packed)
    assert torch.equal(matrix.dequantized(torch.float32), library.dequantize_4bit(packed, state))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_linear_layer(scheme: Scheme) -> None:
    linear = nn.Linear(256, 128).requires_grad_(False)
    linear.weight.copy_(gaussian(128, 256, seed=1))
    layer = QuantizedLinear.of(linear, scheme)
    x = gaussian(5, 3, 256, seed=2)
    expected = product(x, layer.dequantized(torch.float32), linear.bias)
    assert torch.equal(layer(x), expected)
    assert ERRORS[scheme.method][0] < tiny.apart(layer(x), linear(x)) < 1.2 * ERRORS[scheme.method][1]
    assert all(parameter is layer.bias for parameter in layer.parameters())

    state = {name: value.clone() for name, value in state_tensors(layer).items()}
    for dtype, bound in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        half = layer.to(dtype)
        out = half(x.to(dtype))
        assert out.dtype == dtype and tiny.apart(out.float(), expected) < bound
        # Quantized state is not cast along.
        assert all(torch.equal(value, state[name]) for name, value in state_tensors(half).items())
    # A row of a batch is what it is alone: no kernel is chosen by the batch's size.
    layer.to(torch.float32)
    assert tiny.apart(layer(x)[2], layer(x[2])) < 1e-6


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_lstm(scheme: Scheme) -> None:
    lstm = nn.LSTM(40, 64, 3, batch_first=True).requires_grad_(False)
    layer = QuantizedLSTM(lstm, scheme)
    x = gaussian(4, 20, 40)
    out, (hidden, cell) = layer(x)
    exact, (exact_hidden, _) = lstm(x)
    assert out.shape == exact.shape and hidden.shape == cell.shape == (3, 4, 64)
    assert 1e-4 < tiny.apart(hidden, exact_hidden) < {"bnb-8bit": 0.02, "bnb-4bit": 0.3}[scheme.method]
    floats = nn.LSTM(40, 64, 3, batch_first=True).requires_grad_(False)
    floats.load_state_dict(dict(layer.named_parameters()) | {n: m.dequantized(torch.float32) for n, m in layer.matrices.items()})  # fmt: skip  # noqa: E501
    torch.testing.assert_close(out, floats(x)[0])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s3gen") / "s3gen.safetensors"
    tiny.build(tiny.CONFIG, path)
    return path


@pytest.fixture(scope="module")
def exact(published: Path) -> S3Gen:
    return S3Gen.from_weights(tiny.CONFIG, Weights(published), "cpu")


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_s3gen(scheme: Scheme, published: Path, exact: S3Gen) -> None:
    model = S3Gen.from_weights(tiny.CONFIG, Weights(published), "cpu", quantization=scheme)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedModule)}
    # Four encoder blocks of five layers, four stages of a transformer block of four.
    assert len(layers) == 4 * 5 + 4 * 4 and sorted(layers) == sorted(model.quantizable_layers())
    kept = ("encoder.encoder_proj", "speaker", "encoder.encoder.embed.out.0", "estimator.time_mlp.linear_1")
    assert all(isinstance(model.get_submodule(name), nn.Linear) for name in kept)
    # The weights are those of the plain model, rounded: nothing was mixed up or left out.
    for name, layer in layers.items():
        floats = exact.get_submodule(name)
        expected = QuantizedMatrix.of(floats.weight, scheme).dequantized(torch.float32)
        assert torch.equal(layer.dequantized_matrix("weight", torch.float32), expected)
        assert (floats.bias is None and layer.bias is None) or torch.equal(floats.bias, layer.bias)

    requests = [tiny.request(model, 7, 3, seed=2), tiny.request(model, 4, 6, seed=3)]
    mels = model.mel(requests, tiny.STEPS)
    for mel, plain, one in zip(mels, exact.mel(requests, tiny.STEPS), requests, strict=True):
        # Measured: 0.9 % and 35 %; at full size, on Gaussian weights too, 1.1 % and 14 % after two steps.
        assert 1e-4 < tiny.apart(mel, plain) < {"bnb-8bit": 0.03, "bnb-4bit": 0.5}[scheme.method]
        assert tiny.apart(mel, model.mel([one], tiny.STEPS)[0]) < 1e-5
    model.set_precision(torch.bfloat16, torch.float32)
    for half, mel in zip(model.mel(requests, tiny.STEPS), mels, strict=True):
        assert tiny.apart(half, mel) < 5e-2


def test_loading_keeps_one_layer_in_floats_at_most(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No float matrix of an earlier layer is alive when the next one is quantized."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0
    keep = QuantizedModule.keep

    def watched(self: QuantizedModule, name: str, value: torch.Tensor, device: Any) -> bool:
        nonlocal most
        if value.dim() == 2:
            alive.append(weakref.ref(value))
            most = max(most, sum(ref() is not None for ref in alive))
        return keep(self, name, value, device)

    monkeypatch.setattr(QuantizedModule, "keep", watched)
    model = S3Gen.from_weights(tiny.CONFIG, Weights(published), "cpu", quantization=NF4())
    assert len(alive) == len(model.quantizable_layers()) and most == 1
    assert not any(ref() is not None for ref in alive)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_bytes_at_the_published_size(scheme: Scheme) -> None:
    for config in (S3GenConfig(), VoiceEncoderConfig()):
        layout = quantized_file_layout(config, scheme)
        weights = total = 0
        with torch.device("meta"):
            network = S3Gen(config) if isinstance(config, S3GenConfig) else VoiceEncoder(config)
        for name in network.quantizable_layers():
            weights += sum(value.numel() for value in network.get_submodule(name).parameters() if value.dim() == 2)
        for size, dtype in layout.values():
            total += torch.Size(size).numel() * dtype.itemsize
        assert weights == {S3GenConfig: 92_798_976, VoiceEncoderConfig: 1_417_216}[type(config)]
        assert total / weights <= MOST_BYTES[scheme]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_quantized_file_reloads_bit_for_bit(scheme: Scheme, published: Path, tmp_path: Path) -> None:
    weights = Weights(published)
    path = tmp_path / "s3gen.safetensors"
    tensors = quantized_file_tensors(tiny.CONFIG, weights, scheme)
    save_file(tensors, path)
    layout = quantized_file_layout(tiny.CONFIG, scheme)
    assert {key: (tuple(tensors[key].shape), tensors[key].dtype) for key in layout} == layout
    replaced = published_keys_replaced(tiny.CONFIG, scheme)
    assert replaced and tensors.keys() == (weights.keys - replaced) | layout.keys()

    made = S3Gen.from_weights(tiny.CONFIG, weights, "cpu", quantization=scheme)
    read = S3Gen.from_weights(tiny.CONFIG, Weights(path), "cpu", quantization=scheme)
    first, second = state_tensors(made), state_tensors(read)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    request = tiny.request(made, 4, 3)
    assert torch.equal(made.synthesize([request], 2)[0], read.synthesize([request], 2)[0])

    for key, change, fault in (
        (next(k for k in layout if "qkv" in k), lambda t: t[:-1], "is stored by"),
        (next(k for k in layout if "w_1" in k and "scale" in k), lambda t: t.double(), "is stored by"),
        (next(k for k in layout if "to_out" in k), None, "is stored by"),
    ):
        damaged = dict(tensors)
        if change is None:
            del damaged[key]
        else:
            damaged[key] = change(tensors[key]).contiguous()
        save_file(damaged, path)
        with pytest.raises(CheckpointError, match=fault) as caught:
            S3Gen.from_weights(tiny.CONFIG, Weights(path), "cpu", quantization=scheme)
        assert "s3gen.safetensors" in str(caught.value) and key.split(".")[3] in str(caught.value)
    save_file(tensors, path)
    other = NF4() if scheme == Int8() else Int8()
    with pytest.raises(CheckpointError, match="load the file with the method it was made by"):
        S3Gen.from_weights(tiny.CONFIG, Weights(path), "cpu", quantization=other)
    with pytest.raises(CheckpointError, match="missing"):
        S3Gen.from_weights(tiny.CONFIG, Weights(path), "cpu")


def test_the_voice_encoder(babbler: Path, tmp_path: Path) -> None:
    config, weights = VoiceEncoderConfig(), Weights(babbler / "ve.safetensors")

    def loaded(source: Weights, scheme: Scheme | None) -> VoiceEncoder:
        with torch.device("meta"):
            encoder = VoiceEncoder(config)
        if scheme is not None:
            quantize_layers(encoder, encoder.quantizable_layers(), scheme)
        load_module(encoder, source, "")
        return encoder

    partials = gaussian(3, 160, 40).abs()
    exact = loaded(weights, None)(partials)
    # The direction of the embedding is what counts. Measured on these random weights: 0.9993 and 0.83.
    for scheme, least in ((Int8(), 0.998), (NF4(), 0.75)):
        encoder = loaded(weights, scheme)
        similarity = F.cosine_similarity(encoder(partials), exact)
        assert least < float(similarity.min()) < 1 - 1e-7
        path = tmp_path / f"{scheme.method}.safetensors"
        save_file(quantized_file_tensors(config, weights, scheme), path)
        assert path.stat().st_size < weights.path.stat().st_size * (0.3 if scheme.method == "bnb-8bit" else 0.16)
        assert torch.equal(loaded(Weights(path), scheme)(partials), encoder(partials))


def test_the_fused_kernel_takes_either_layer() -> None:
    pytest.importorskip("triton", reason=NO_TRITON)
    from chatterbox_vllm.s3gen.kernels import gelu_linear, gelu_linear_reference

    linear = nn.Linear(64, 48).requires_grad_(False)
    x = gaussian(5, 64)
    for layer in (linear, QuantizedLinear.of(linear, NF4())):
        # On a CPU torch's fused GELU is the exact one.
        assert tiny.apart(gelu_linear(x, layer), gelu_linear_reference(x, layer)) < 2e-3


def test_what_is_refused(no_bitsandbytes: None) -> None:
    with pytest.raises(ConfigError, match="'awq'"):
        scheme_of("awq")
    with pytest.raises(ConfigError, match="Conv1d"):
        quantize_layers(nn.Sequential(nn.Conv1d(2, 2, 1)), ["0"], Int8())
    with pytest.raises(ConfigError, match="pip install .bitsandbytes>="):
        NF4().quantize(gaussian(2, 64))
    Int8().quantize(gaussian(2, 4))  # needs no library
