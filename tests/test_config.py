"""Dimensions from config.json: round trip and faults that name the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatterbox_vllm.checkpoint.config import FlowConfig, ModelConfig, S3GenConfig, T3Config
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.layout import checkpoint_shapes
from chatterbox_vllm.families.registry import config_of


def test_no_file_means_the_published_sizes(tmp_path: Path) -> None:
    assert config_of(tmp_path) == ModelConfig()


def test_round_trip(tmp_path: Path) -> None:
    config = ModelConfig(
        t3=T3Config(num_layers=3, rope_theta=1e4),
        s3gen=S3GenConfig(flow=FlowConfig(cfg_rate=0.5, meanflow=True)),
        diffusion_steps=4,
    )
    (tmp_path / "config.json").write_text(config.to_json())
    assert config_of(tmp_path) == config


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "JSON"),
        ("[]", "format"),
        ({"architectures": ["Llama"]}, "format"),
        ({"format": "chatterbox", "t3": {"hiden_size": 4}}, "hiden_size"),
        ({"format": "chatterbox", "t3": {"hidden_size": "4"}}, "t3: hidden_size"),
        ({"format": "chatterbox", "t3": {"hidden_size": -4}}, "negative"),
        ({"format": "chatterbox", "t3": {"hidden_size": True}}, "hidden_size"),
        ({"format": "chatterbox", "s3gen": {"hift": {"upsample_rates": [8, "5"]}}}, "upsample_rates"),
        ({"format": "chatterbox", "s3gen": 5}, "s3gen: should be an object, found 5"),
        ({"format": "chatterbox", "s3gen": {"flow": {"meanflow": 1}}}, "s3gen: flow: meanflow: .*boolean, found 1"),
        ({"format": "chatterbox", "quantized": {"t3": {}}}, "quantized: t3: method: the field is missing"),
        ({"format": "chatterbox", "quantized": {"t3": {"method": "zip"}}}, "quantized.t3: expected .*found 'zip'"),
        ({"format": "chatterbox", "diffusion_steps": 101}, "diffusion_steps: .*100"),
        ('{"format": "chatterbox", "t3": {"rope_theta": NaN}}', "t3: rope_theta: .*finite"),
        ({"format": "chatterbox", "t3": {"num_layers": 10**9}}, "t3: num_layers: .*1000, found 1000000000"),
        ({"format": "chatterbox", "t3": {"guidance_streams": 1}}, "t3: guidance_streams must be 2 .*'llama', found 1"),
        ({"format": "chatterbox", "t3": {"guidance_streams": 0}}, "t3: guidance_streams: .*found 0"),
        ({"format": "chatterbox", "t3": {"stop_speech_token": 8194}}, "t3: stop_speech_token .*8194, found 8194"),
        ({"format": "chatterbox", "t3": {"start_text_token": 704}}, "t3: start_text_token .*text_vocab_size"),
    ],
)
def test_faults_are_named(tmp_path: Path, content: object, named: str) -> None:
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=named):
        config_of(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"s3gen": {"hift": {"upsample_rates": [8, 5]}}}, "s3gen: no network has these sizes"),
        ({"s3gen": {"hift": {"source_kernels": [7]}}}, "s3gen: no network has these sizes"),
        ({"s3gen": {"tokenizer": {"num_heads": 0}}}, "s3gen: no network has these sizes"),
        ({"voice_encoder": {"hidden_size": 0}}, "voice_encoder: no network has these sizes"),
    ],
)
def test_sizes_that_no_network_has_are_refused(tmp_path: Path, sizes: dict[str, object], named: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": "chatterbox", **sizes}))
    with pytest.raises(ConfigError, match=f"config.json: {named} .*mend it"):
        checkpoint_shapes(config_of(tmp_path))
