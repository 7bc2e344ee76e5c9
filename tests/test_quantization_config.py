"""Every way of asking for quantization leads to one `QuantizationConfig`."""

from __future__ import annotations

from typing import Any

import pytest

from chatterbox_vllm.checkpoint.config import QuantizedPart, QuantizedParts
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import STRATEGIES, QuantizationConfig
from chatterbox_vllm.settings import GPU_MEMORY_UTILIZATION, MAX_BATCH_SIZE, MAX_MODEL_LEN, positive, share

asked = QuantizationConfig.from_options


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USE_QUANTIZATION", "QUANTIZATION_METHOD", "QUANTIZE_S3GEN", "QUANTIZE_VOICE_ENCODER"):
        monkeypatch.delenv(f"CHATTERBOX_{name}", raising=False)


def test_keywords() -> None:
    assert asked() is None
    assert asked(use_quantization=False) == QuantizationConfig()
    assert asked(True) == asked(use_bnb_quantization=True) == QuantizationConfig("bnb-4bit")
    assert asked(True, "bnb-8bit", True, True) == QuantizationConfig("bnb-8bit", "bnb-8bit", "bnb-8bit")
    assert asked(True, "awq", True) == QuantizationConfig("awq", "bnb-8bit")
    assert asked(True, None, "bnb-8bit", "bnb-4bit") == QuantizationConfig("bnb-4bit", "bnb-8bit", "bnb-4bit")
    assert not QuantizationConfig().active and QuantizationConfig(voice_encoder="bnb-8bit").active


def test_strategies() -> None:
    strategy = QuantizationConfig.from_strategy
    assert strategy("conservative") == strategy("int8") == QuantizationConfig("bnb-8bit", "bnb-8bit", "bnb-8bit")
    assert strategy("mixed") == QuantizationConfig("bnb-4bit", "bnb-8bit", "bnb-4bit")
    assert strategy("aggressive") == strategy("nf4") == QuantizationConfig("bnb-4bit", "bnb-4bit", "bnb-4bit")
    assert len(STRATEGIES) == 5
    with pytest.raises(ConfigError, match="'auto', not 'bold'"):
        strategy("bold")


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATTERBOX_QUANTIZATION_METHOD", "bnb-8bit")
    monkeypatch.setenv("CHATTERBOX_QUANTIZE_S3GEN", "yes")
    monkeypatch.setenv("CHATTERBOX_QUANTIZE_VOICE_ENCODER", "bnb-4bit")
    assert asked() is None  # the switch is off, whatever else is set
    monkeypatch.setenv("CHATTERBOX_USE_QUANTIZATION", " True ")
    assert asked() == QuantizationConfig("bnb-8bit", "bnb-8bit", "bnb-4bit")
    # A keyword goes before its variable, and only its own.
    assert asked(use_quantization=False) == QuantizationConfig()
    assert asked(quantization_method="bnb-4bit") == QuantizationConfig("bnb-4bit", "bnb-4bit", "bnb-4bit")
    assert asked(quantize_s3gen=False).s3gen is None
    monkeypatch.setenv("CHATTERBOX_USE_QUANTIZATION", "0")
    assert asked() == QuantizationConfig() and asked(True).t3 == "bnb-8bit"
    monkeypatch.setenv("CHATTERBOX_USE_QUANTIZATION", "")
    assert asked() is None


def test_beside_a_tier_each_setting_changes_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = QuantizationConfig("bnb-4bit", "bnb-4bit")
    assert asked(base=tier) == asked(True, base=tier) == tier
    assert asked(quantize_s3gen=False, base=tier) == QuantizationConfig("bnb-4bit")
    assert asked(quantization_method="bnb-8bit", base=tier) == QuantizationConfig("bnb-8bit", "bnb-4bit")
    assert asked(quantize_voice_encoder=True, base=tier) == QuantizationConfig("bnb-4bit", "bnb-4bit", "bnb-4bit")
    assert asked(False, base=tier) == QuantizationConfig()
    assert asked(quantize_s3gen=True, base=QuantizationConfig()) == QuantizationConfig(None, "bnb-8bit")
    assert asked(True, base=QuantizationConfig()) == QuantizationConfig("bnb-4bit")
    monkeypatch.setenv("CHATTERBOX_QUANTIZE_S3GEN", "bnb-8bit")
    assert asked(base=tier) == QuantizationConfig("bnb-4bit", "bnb-8bit")
    monkeypatch.setenv("CHATTERBOX_QUANTIZATION_METHOD", "garbage")
    with pytest.raises(ConfigError, match="CHATTERBOX_QUANTIZATION_METHOD must be"):
        asked(base=tier)


def test_no_default_falls_on_what_is_quantized_already() -> None:
    stored = QuantizedParts(t3=QuantizedPart("awq"), s3gen=QuantizedPart("bnb-8bit"))
    assert asked(True, stored=stored) == QuantizationConfig()
    assert asked(True, None, True, True, stored=stored) == QuantizationConfig(None, None, "bnb-8bit")
    assert asked(True, "bnb-4bit", stored=stored) == QuantizationConfig("bnb-4bit")  # which loading then refuses
    nf4 = QuantizedParts(t3=QuantizedPart("bnb-4bit"))
    assert asked(True, None, True, stored=nf4) == QuantizationConfig(None, "bnb-4bit")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CHATTERBOX_USE_QUANTIZATION", "maybe"),
        ("CHATTERBOX_QUANTIZATION_METHOD", "int3"),
        ("CHATTERBOX_QUANTIZE_S3GEN", "awq"),
        ("CHATTERBOX_QUANTIZE_VOICE_ENCODER", "2"),
    ],
)
def test_bad_variables_are_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("CHATTERBOX_USE_QUANTIZATION", "1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"variable {variable} must be .*, not '{value}'"):
        asked()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_quantization": True, "quantization_method": "gptq"}, "quantization_method must be .*bnb-4bit.*'gptq'"),
        ({"use_quantization": "perhaps"}, "use_quantization"),
        ({"use_quantization": True, "quantize_s3gen": "fp8"}, "quantize_s3gen.*'fp8'"),
        ({"quantization_method": "awq"}, "quantization_method='awq' means nothing without use_quantization=True"),
        ({"quantize_voice_encoder": True}, "quantize_voice_encoder=True means nothing"),
        ({"use_quantization": False, "quantize_s3gen": "bnb-8bit"}, "quantize_s3gen"),
        ({"use_bnb_quantization": True, "quantization_method": "awq"}, "contradicts"),
        ({"use_bnb_quantization": True, "use_quantization": False}, "contradicts"),
        ({"use_bnb_quantization": True, "use_quantization": "no"}, "contradicts"),
        ({"use_bnb_quantization": "no"}, "use_bnb_quantization must be True or False"),
    ],
)
def test_bad_keywords_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        asked(**options)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"t3": "int4"}, "t3"), ({"s3gen": "awq"}, "s3gen"), ({"voice_encoder": "fp8"}, "voice_encoder"),
     ({"double_quant": 1}, "double_quant")],
)  # fmt: skip
def test_the_config_checks_itself(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        QuantizationConfig(**fields)


def test_steps_down_are_ordered_and_end_unquantized() -> None:
    steps = list(QuantizationConfig.from_strategy("mixed").steps_down())
    assert [name for name, _ in steps] == [
        "double quantization off",
        "voice encoder not quantized",
        "S3Gen not quantized",
        "T3 from 4 to 8 bits",
        "T3 not quantized",
    ]
    assert [config for _, config in steps] == [
        QuantizationConfig("bnb-4bit", "bnb-8bit", "bnb-4bit", False),
        QuantizationConfig("bnb-4bit", "bnb-8bit", None, False),
        QuantizationConfig("bnb-4bit", None, None, False),
        QuantizationConfig("bnb-8bit", None, None, False),
        QuantizationConfig(None, None, None, False),
    ]
    # T3's own methods give way to another of their size before anything else is given up.
    for method, beside, instead in (("awq", "bnb-8bit", "bnb-4bit"), ("fp8", "bnb-4bit", "bnb-8bit")):
        (name, first), *others = QuantizationConfig(method, beside, beside).steps_down()
        assert (name, first) == (f"T3 in {instead}", QuantizationConfig(instead, beside, beside))
        assert others == list(first.steps_down())
    assert list(QuantizationConfig().steps_down()) == []
    assert str(QuantizationConfig()) == "nothing quantized"
    assert str(steps[1][1]) == "t3 bnb-4bit, s3gen bnb-8bit, single quantization of scales"


def test_settings_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ((MAX_MODEL_LEN, positive, "512", 512), (MAX_BATCH_SIZE, positive, "3", 3),
             (GPU_MEMORY_UTILIZATION, share, "0.4", 0.4))  # fmt: skip
    for setting, parse, word, value in cases:
        monkeypatch.delenv(setting.variable, raising=False)
        assert setting.resolve(None, parse, None) is None
        monkeypatch.setenv(setting.variable, word)
        assert setting.resolve(None, parse, None) == value
        assert setting.resolve(1, parse, None) == 1
        for bad in ("0", "-1", "many", "nan"):
            monkeypatch.setenv(setting.variable, bad)
            with pytest.raises(ConfigError, match=rf"{setting.variable} must be .*, not '{bad}'"):
                setting.resolve(None, parse, None)
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization must be .* not 1\.5"):
        GPU_MEMORY_UTILIZATION.resolve(1.5, share, None)
