"""The report counts what is there; what cannot be had is said before anything loads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.live import component_info, render
from chatterbox_vllm.quantization.modules import quantize_layers
from chatterbox_vllm.quantization.storage import NF4, Int8, scheme_of
from chatterbox_vllm.setup.support import check_quantization_support, require_support
from chatterbox_vllm.t3.quantization.methods import automatic_dtype

CPU = torch.device("cpu")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(128, 256), nn.LayerNorm(256), nn.Linear(256, 64, bias=False), nn.Embedding(5, 8))


def test_floats_are_counted_as_floats() -> None:
    info = component_info(network().half())
    assert info.method is None and (info.quantized_layers, info.linear_layers) == (0, 2)
    assert info.bytes_by_dtype == {"float16": 2 * (128 * 256 + 256 + 512 + 256 * 64 + 40)}
    assert info.bytes_per_weight is None and info.devices == ["cpu"]


@pytest.mark.parametrize("method", ["bnb-8bit", "bnb-4bit"])
def test_quantized_layers_are_counted(method: str) -> None:
    pytest.importorskip("bitsandbytes")
    net = network()
    quantize_layers(net, ["0"], scheme_of(method))
    info = component_info(net)
    assert info.method == method and (info.quantized_layers, info.linear_layers) == (1, 2)
    assert info.quantized_weights == 128 * 256
    assert info.quantized_bytes == scheme_of(method).stored_bytes((256, 128))
    floats = 4 * (256 + 512 + 256 * 64 + 40)
    assert info.total_bytes == info.quantized_bytes + floats
    assert info.kernels == [] and info.unseen_layers == 0
    table = render({"net": info.as_dict(), "gone": None})
    assert method in table and "1 of 2" in table and "gone           not in memory" in table
    said = render({"net": info.as_dict(), "asked": "all of it", "steps_down": ["a little", "a lot"]})
    assert said.splitlines()[-2:] == ["asked for: all of it", "stepped down: a little, then a lot"]
    assert "stepped" not in render({"net": info.as_dict(), "asked": "all of it", "steps_down": []})


def test_methods_that_differ_are_both_named() -> None:
    pytest.importorskip("bitsandbytes")
    net = nn.Sequential(network(), nn.LSTM(40, 64, 3))
    quantize_layers(net, ["0.0"], NF4())
    quantize_layers(net, ["1"], Int8())
    assert component_info(net).method == "bnb-4bit+bnb-8bit"


def test_a_weight_assigned_as_floats_is_not_taken_for_quantized() -> None:
    """The classic fault: a layer of a quantizing class that holds floats."""

    class Linear4bit(nn.Linear):
        quant_state = None

    info = component_info(nn.Sequential(Linear4bit(64, 64)))
    assert info.method is None and info.quantized_layers == 0 and info.linear_layers == 1


def engine_layer_of(method: object, **tensors: torch.Tensor) -> nn.Module:
    """A linear layer of vLLM's as it stands after loading, [64, 128], without an engine around it."""
    from vllm.model_executor.layers.linear import LinearBase

    layer = LinearBase.__new__(LinearBase)
    nn.Module.__init__(layer)
    layer.input_size, layer.output_size, layer.quant_method = 128, 64, method
    for name, value in tensors.items():
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return layer


def test_layers_of_the_engine_are_asked_and_not_guessed() -> None:
    """Whatever dtypes a kernel has repacked the weights into."""
    pytest.importorskip("vllm")
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.auto_awq import AutoAWQMarlinLinearMethod
    from vllm.model_executor.layers.quantization.online.fp8 import (
        Fp8PerTensorOnlineLinearMethod,
        Fp8PtpcOnlineLinearMethod,
    )

    from chatterbox_vllm.t3.vllm.live import engine_layer

    class Kernel:
        pass

    awq, fp8, unquantized, other = (
        cls.__new__(cls)
        for cls in (
            AutoAWQMarlinLinearMethod,
            Fp8PtpcOnlineLinearMethod,
            UnquantizedLinearMethod,
            Fp8PerTensorOnlineLinearMethod,
        )
    )
    awq.kernel = fp8.fp8_linear = Kernel()
    # As vLLM's kernel for AMX leaves an AWQ layer: bytes, float32 scales and 32-bit sums.
    repacked = {
        "qweight": torch.zeros(64 * (128 // 2 + 4), dtype=torch.uint8),
        "scales": torch.zeros(64),
        "qzeros": torch.zeros(64, dtype=torch.uint8),
    }
    info = component_info(engine_layer_of(awq, **repacked), engine_layer)
    assert (info.method, info.kernels, info.quantized_layers) == ("awq", ["Kernel"], 1)
    assert info.bytes_per_weight == pytest.approx(0.5703, abs=1e-4)

    halves = torch.zeros(64, 128, dtype=torch.bfloat16)
    for method, said in ((fp8, "fp8"), (unquantized, None), (other, "Fp8PerTensorOnlineLinearMethod")):
        info = component_info(engine_layer_of(method, weight=halves), engine_layer)
        assert (info.method, info.quantized_layers) == (said, said is not None)
        assert info.bytes_by_dtype == {"bfloat16": 2 * 64 * 128} and info.unseen_layers == 0

    inside = component_info(engine_layer_of(unquantized, weight=torch.empty(0)), engine_layer)
    assert (inside.linear_layers, inside.quantized_layers, inside.unseen_layers) == (1, 0, 1)
    assert "layers 1 of t3" in render({"t3": inside.as_dict()})


@pytest.mark.parametrize("method", ["bnb-8bit", "bnb-4bit"])
def test_an_engine_layer_that_holds_floats_is_not_quantized(method: str) -> None:
    """Whatever it was made for: our method looks at what the layer holds."""
    pytest.importorskip("vllm")
    pytest.importorskip("bitsandbytes")
    from chatterbox_vllm.t3.vllm.bitsandbytes import BnbLinearMethod
    from chatterbox_vllm.t3.vllm.live import engine_layer

    scheme = scheme_of(method)
    how = BnbLinearMethod(scheme, stored=True)
    how.shape = (64, 128)
    info = component_info(engine_layer_of(how, weight=torch.zeros(64, 128)), engine_layer)
    assert info.method is None and info.quantized_layers == 0
    info = component_info(engine_layer_of(how, **scheme.quantize(torch.randn(64, 128))), engine_layer)
    assert (info.method, info.kernels, info.quantized_bytes) == (
        method,
        ["bitsandbytes"],
        scheme.stored_bytes((64, 128)),
    )


def test_support_on_a_cpu() -> None:
    pytest.importorskip("vllm")
    found = check_quantization_support("cpu")
    assert found["device"] == "cpu"
    methods = found["methods"]
    assert methods["bnb-8bit"]["s3gen"] == {"available": True, "why_not": None}
    assert "needs a CUDA device" in methods["fp8"]["t3"]["why_not"]
    assert methods["awq"]["t3"]["available"]  # in bfloat16, which is what awq gets where no dtype is given
    in_float32 = check_quantization_support("cpu", "float32")["methods"]["awq"]["t3"]["why_not"]
    assert "float32" in in_float32 and "dtype='bfloat16'" in in_float32
    assert "T3 only" in methods["awq"]["voice_encoder"]["why_not"]
    with pytest.raises(ConfigError, match="'int8'"):
        check_quantization_support("cpu", "int8")


def test_what_cannot_be_had_names_the_remedy(no_bitsandbytes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    require_support(QuantizationConfig(), CPU, torch.float32)
    with pytest.raises(ConfigError, match="t3 cannot be quantized by fp8 here: .*bnb-8bit on the CPU"):
        require_support(QuantizationConfig("fp8"), CPU, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigError, match=r"fp8 needs compute capability 8\.9, this card has 8\.0"):
        require_support(QuantizationConfig("fp8"), torch.device("cuda"), torch.bfloat16)

    for config in (QuantizationConfig(t3="bnb-8bit"), QuantizationConfig(s3gen="bnb-4bit")):
        with pytest.raises(ConfigError, match="pip install .bitsandbytes>="):
            require_support(config, CPU, torch.float32)
    require_support(QuantizationConfig(s3gen="bnb-8bit", voice_encoder="bnb-8bit"), CPU, torch.float32)


def test_what_t3_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda", 0)
    assert [automatic_dtype(method, cpu) for method in (None, "bnb-4bit", "awq")] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
    ]
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((12, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert {automatic_dtype(method, card) for method in (None, "bnb-4bit", "awq")} == {dtype}
