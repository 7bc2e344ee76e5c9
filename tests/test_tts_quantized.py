"""`ChatterboxTTS` with quantized components on the babbling model: what is asked for is in memory, and it speaks."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
pytest.importorskip("bitsandbytes")

from chatterbox_vllm import ChatterboxTTS, ConfigError, QuantizationConfig
from chatterbox_vllm.errors import DeviceError
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.quantization.storage import NF4
from chatterbox_vllm.setup.loading import in_force, load
from chatterbox_vllm.setup.planning import Settings
from chatterbox_vllm.setup.quantize import quantize_model
from chatterbox_vllm.setup.tiers import Plan, tier_named

from .made_up_clips import babble

SMALL: dict[str, Any] = {"max_model_len": 384, "max_batch_size": 1, "watermark": False}
TEXT = "Hello there."


def test_flow_and_voice_encoder(babbler: Path, tmp_path: Path) -> None:
    config = QuantizationConfig(s3gen="bnb-4bit", voice_encoder="bnb-8bit")
    with ChatterboxTTS.from_local(babbler, "cpu", quantization=config, **SMALL) as tts:
        info = tts.get_quantization_info()
        assert info["asked"] == "s3gen bnb-4bit, voice_encoder bnb-8bit" and info["steps_down"] == []
        assert info["t3"]["method"] is None and info["t3"]["quantized_layers"] == 0
        assert info["t3"]["linear_layers"] == 4 * 4
        flow = info["s3gen"]
        # Three encoder blocks of five layers, four stages of a transformer block of four.
        assert flow["method"] == "bnb-4bit" and flow["quantized_layers"] == 3 * 5 + 4 * 4 < flow["linear_layers"]
        layers = [tts.s3gen_stage.model.get_submodule(n) for n in tts.s3gen_stage.model.quantizable_layers()]
        assert flow["quantized_bytes"] == sum(NF4().stored_bytes(layer.matrices["weight"].shape) for layer in layers)
        assert flow["bytes_per_weight"] <= 0.53

        assert info["voice_encoder"] is None  # loaded at the first enrolment
        wave = tts.generate(TEXT, seed=1, max_tokens=60)
        assert torch.isfinite(wave).all() and wave.abs().max() > 0.01
        assert torch.equal(tts.generate(TEXT, seed=1, max_tokens=60), wave)
        tts._enroller.enrol(babble(2), tts.sr)
        encoder = tts.get_quantization_info()["voice_encoder"]
        assert encoder["method"] == "bnb-8bit" and encoder["quantized_layers"] == encoder["linear_layers"] == 2
        assert encoder["bytes_per_weight"] <= 1.01


def test_doors_lead_to_one_plan(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way of asking reaches the loader as the same configuration."""
    asked: list[QuantizationConfig] = []

    def note(settings: Any, plan: Any, fallback: bool) -> Any:
        asked.append(plan.quantization)
        raise ConfigError("far enough")

    monkeypatch.setattr("chatterbox_vllm.loaded.tts.load", note)
    nf4 = QuantizationConfig("bnb-4bit", "bnb-4bit", "bnb-4bit")
    everything = {"quantize_s3gen": True, "quantize_voice_encoder": True}
    doors: list[Any] = [
        lambda: ChatterboxTTS.from_local(babbler, "cpu", use_quantization=True, **everything),
        lambda: ChatterboxTTS.from_pretrained(babbler, "cpu", use_bnb_quantization=True, **everything),
        lambda: ChatterboxTTS.from_pretrained_quantized(babbler, "cpu", quantization_strategy="aggressive"),
        lambda: ChatterboxTTS.from_pretrained_quantized(babbler, "cpu", quantization_strategy="nf4"),
        lambda: ChatterboxTTS.from_local(babbler, "cpu", quantization=nf4),
        lambda: ChatterboxTTS.from_local(babbler, "cpu", tier=4),
    ]
    for door in doors:
        with pytest.raises(ConfigError, match="far enough"):
            door()
    variables = ("USE_QUANTIZATION", "QUANTIZE_S3GEN", "QUANTIZE_VOICE_ENCODER")
    for name in variables:
        monkeypatch.setenv(f"CHATTERBOX_{name}", "1")
    with pytest.raises(ConfigError, match="far enough"):
        ChatterboxTTS.from_local(babbler, "cpu")
    assert asked.pop(len(doors) - 1) == tier_named(4).plan.quantization
    assert asked == [nf4] * len(doors)
    for name in variables:
        monkeypatch.delenv(f"CHATTERBOX_{name}")
    with pytest.raises(ConfigError, match="far enough"):
        ChatterboxTTS.from_pretrained_quantized(babbler, "cpu")
    assert asked[-1] == QuantizationConfig.from_strategy("conservative")
    for options, named in (
        ({"quantization": nf4, "use_quantization": True}, "either quantization or use_quantization"),
        ({"quantization": nf4, "quantize_s3gen": False}, "either quantization or quantize_s3gen"),
        ({"quantization": "nf4"}, "must be a QuantizationConfig, not 'nf4'.*quantization_strategy"),
        ({"use_bnb_quantization": True, "fallback": "no"}, "fallback must be True or False"),
    ):
        with pytest.raises(ConfigError, match=named):
            ChatterboxTTS.from_local(babbler, "cpu", **options)
    with pytest.raises(ConfigError, match="either quantization or quantize_s3gen"):
        ChatterboxTTS.from_pretrained_quantized(babbler, "cpu", quantization_strategy="mixed", quantize_s3gen=False)
    with pytest.raises(ConfigError, match="quantization_strategy must be one of"):
        ChatterboxTTS.from_pretrained_quantized(babbler, "cpu", quantization_strategy=["mixed"])


def test_doors_to_a_quantized_directory(babbler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(settings: Any, plan: Any) -> Any:
        raise ConfigError(str(in_force(plan.quantization, settings.directory, config)))

    config = quantize_model(babbler, tmp_path / "nf4", QuantizationConfig("bnb-4bit"))
    monkeypatch.setattr("chatterbox_vllm.setup.loading.assemble", note)
    for options, found in (
        ({}, "t3 bnb-4bit"),
        ({"use_quantization": True}, "t3 bnb-4bit"),
        ({"use_quantization": True, "quantize_s3gen": True}, "t3 bnb-4bit, s3gen bnb-4bit"),
        ({"tier": 6}, "t3 bnb-4bit, s3gen bnb-8bit"),
        (
            {"quantization": QuantizationConfig("bnb-8bit", "bnb-4bit"), "fallback": True},
            "cannot be loaded as bnb-8bit",
        ),
        ({"quantization": QuantizationConfig("bnb-4bit", double_quant=False)}, "double quantization already"),
    ):
        with pytest.raises(ConfigError, match=found):
            ChatterboxTTS.from_local(tmp_path / "nf4", "cpu", **options)
    with pytest.raises(ConfigError, match="^t3 bnb-4bit, s3gen bnb-8bit, voice_encoder bnb-8bit$"):
        ChatterboxTTS.from_pretrained_quantized(tmp_path / "nf4", "cpu")
    single = quantize_model(babbler, tmp_path / "single", QuantizationConfig("bnb-4bit", double_quant=False))
    assert not in_force(QuantizationConfig(), tmp_path / "single", single).double_quant


def test_the_impossible_raises_and_fallback_steps_down(
    babbler: Path, no_bitsandbytes: None, caplog: pytest.LogCaptureFixture
) -> None:
    config = QuantizationConfig(s3gen="bnb-8bit", voice_encoder="bnb-4bit")
    with pytest.raises(ConfigError, match="voice_encoder cannot be quantized by bnb-4bit here.*pip install"):
        ChatterboxTTS.from_local(babbler, "cpu", quantization=config, **SMALL)
    with (
        caplog.at_level(logging.WARNING, "chatterbox_vllm"),
        ChatterboxTTS.from_local(babbler, "cpu", quantization=config, fallback=True, **SMALL) as tts,
    ):
        info = tts.get_quantization_info()
        assert tts.quantization == QuantizationConfig(s3gen="bnb-8bit", voice_encoder="bnb-8bit")
    assert info["steps_down"] == ["voice encoder in bnb-8bit"]
    assert info["asked"] == str(config) and info["s3gen"]["method"] == "bnb-8bit"
    (said,) = [r.message for r in caplog.records if "stepping down" in r.message]
    assert said.startswith(f"stepping down from {config} to voice encoder in bnb-8bit: ") and "pip install" in said


def test_fallback_keeps_the_rest_where_there_are_no_awq_weights(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(settings: Any, plan: Any) -> Any:
        asked.append(plan.quantization)
        in_force(plan.quantization, settings.directory, config_of(settings.directory))
        return SimpleNamespace(plan=plan)

    asked: list[QuantizationConfig] = []
    monkeypatch.setattr("chatterbox_vllm.setup.loading.assemble", note)
    config = QuantizationConfig("awq", "bnb-8bit", "bnb-8bit")
    settings = Settings(babbler, torch.device("cpu"), None, torch.float32, False, False, False)
    parts, steps = load(settings, Plan(quantization=config), fallback=True)
    assert asked == [parts.plan.quantization] == [QuantizationConfig("bnb-4bit", "bnb-8bit", "bnb-8bit")]
    assert steps == ("T3 in bnb-4bit",)
    assert (settings.t3_dtype("awq"), settings.t3_dtype("bnb-4bit")) == (torch.bfloat16, torch.float32)


def test_fallback_takes_from_each_component_only_what_it_cannot_have(babbler: Path, no_bitsandbytes: None) -> None:
    config = QuantizationConfig("bnb-4bit", "bnb-8bit", "bnb-4bit")
    with ChatterboxTTS.from_local(babbler, "cpu", quantization=config, fallback=True, **SMALL) as tts:
        assert tts.quantization == QuantizationConfig(None, "bnb-8bit", "bnb-8bit")
        assert tts.get_quantization_info()["steps_down"] == [
            "T3 in bnb-8bit",
            "T3 not quantized",
            "voice encoder in bnb-8bit",
        ]


def test_fallback_where_the_card_has_no_room_goes_down_in_order(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(settings: Any, plan: Any) -> Any:
        tried.append(plan.quantization)
        if plan.quantization.double_quant:
            raise DeviceError("out of memory")
        return SimpleNamespace(plan=plan)

    tried: list[QuantizationConfig] = []
    monkeypatch.setattr("chatterbox_vllm.setup.loading.assemble", full)
    settings = Settings(babbler, torch.device("cpu"), None, torch.float32, False, False, False)
    config = QuantizationConfig("bnb-4bit")
    assert load(settings, Plan(quantization=config), fallback=True)[1] == ("double quantization off",)
    assert tried == [config, QuantizationConfig("bnb-4bit", double_quant=False)]
    with pytest.raises(DeviceError, match="out of memory"):
        load(settings, Plan(quantization=config), fallback=False)
