"""Quantized checkpoints: written whole, loaded as they are, refused by name when damaged; and the command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm")
pytest.importorskip("bitsandbytes")

from chatterbox_vllm import ChatterboxTTS
from chatterbox_vllm.checkpoint import Weights
from chatterbox_vllm.cli import main
from chatterbox_vllm.config import ModelConfig, QuantizedPart
from chatterbox_vllm.errors import CheckpointError, ConfigError, OutputError
from chatterbox_vllm.layout import check_t3
from chatterbox_vllm.quantization import files
from chatterbox_vllm.quantization.files import fingerprint, stored_quantization
from chatterbox_vllm.quantization.make import quantize_model

FILE = "t3_cfg.safetensors"


@pytest.fixture(scope="module")
def nf4(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "nf4"
    quantize_model(demo, directory, "bnb-4bit")
    return directory


@pytest.fixture(scope="module")
def int8(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "int8"
    quantize_model(demo, directory, "bnb-8bit")
    return directory


def test_what_is_written(demo: Path, nf4: Path, int8: Path) -> None:
    assert {f.name for f in nf4.iterdir()} == {f.name for f in demo.iterdir()}
    assert (nf4 / FILE).stat().st_size < 0.8 * (demo / FILE).stat().st_size
    assert (nf4 / "s3gen.safetensors").samefile(demo / "s3gen.safetensors")
    for directory, method, double in ((nf4, "bnb-4bit", True), (int8, "bnb-8bit", False)):
        config, weights = ModelConfig.from_directory(directory), Weights(directory / FILE)
        tensors = {key: weights.get(key) for key in weights.keys}
        part = QuantizedPart(method, double, fingerprint(tensors))
        assert config.quantized.t3 == stored_quantization(weights) == part
        assert config.t3 == ModelConfig.from_directory(demo).t3
        # What is not quantized is as published.
        plain = Weights(demo / FILE)
        for key in ("speech_head.weight", "text_emb.weight", "tfmr.layers.1.input_layernorm.weight"):
            assert torch.equal(tensors[key], plain.get(key))


def test_made_again_it_is_the_same(demo: Path, nf4: Path, tmp_path: Path) -> None:
    assert quantize_model(demo, tmp_path / "again", "bnb-4bit") == ModelConfig.from_directory(nf4)
    flat = quantize_model(demo, tmp_path / "flat", "bnb-4bit", double_quant=False).quantized.t3
    assert flat is not None and not flat.double_quant
    assert Weights(tmp_path / "flat" / FILE).get("tfmr.layers.0.mlp.down_proj.scales").dtype == torch.float32
    assert (tmp_path / "flat" / FILE).stat().st_size > (tmp_path / "again" / FILE).stat().st_size


def test_speaks_from_the_directory(nf4: Path) -> None:
    with ChatterboxTTS.from_local(nf4, "cpu", max_model_len=256, max_batch_size=1, watermark=False) as tts:
        assert tts.t3_stage.options.quantization == "bnb-4bit" and tts.t3_stage.options.dtype == torch.float32
        wave = tts.generate("Hello.", max_tokens=40, seed=1)
    assert torch.isfinite(wave).all() and wave.abs().max() > 0.01


def damage(directory: Path, tmp_path: Path) -> Path:
    """A copy to be damaged; its T3 file is no link."""
    copy = tmp_path / "damaged"
    shutil.copytree(directory, copy)
    return copy


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        ChatterboxTTS.from_local(directory, "cpu")
    assert str(directory / FILE) in str(caught.value)
    return str(caught.value)


def test_damaged_files_are_refused_by_name(demo: Path, nf4: Path, int8: Path, tmp_path: Path) -> None:
    copy = damage(nf4, tmp_path)
    path = copy / FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert "truncated" in refused(copy)
    shutil.copyfile(int8 / FILE, path)
    message = refused(copy)
    assert "bnb-8bit" in message and "bnb-4bit" in message and "chatterbox-vllm quantize" in message
    shutil.copyfile(demo / FILE, path)
    assert "not quantized" in refused(copy)
    # The right header over other tensors.
    header, tensors = Weights(nf4 / FILE).metadata, load_file(nf4 / FILE)
    key = "tfmr.layers.1.mlp.down_proj.scales_8bit"
    for change, named in (
        ({k: v for k, v in tensors.items() if k != key}, key),
        (tensors | {key: torch.zeros(7, dtype=torch.uint8)}, "(7,)"),
        (tensors | {key: tensors[key].float()}, "F32, not U8"),
    ):
        save_file(change, path, metadata=header)
        assert named in refused(copy)
    save_file(tensors, path, metadata=header | {"chatterbox_quantized": "{"})
    assert "header" in refused(copy)
    # Another run's file of the same method: only the fingerprint tells.
    other = json.loads(header["chatterbox_quantized"]) | {"fingerprint": "0" * 64}
    save_file(tensors, path, metadata=header | {"chatterbox_quantized": json.dumps(other)})
    assert "000000000000" in refused(copy)
    path.write_bytes(whole)
    check_t3(ModelConfig.from_directory(copy), Weights(path))  # nothing wrong with it now


def test_a_quantized_file_in_a_plain_directory_is_refused(demo: Path, nf4: Path, tmp_path: Path) -> None:
    copy = damage(demo, tmp_path)
    shutil.copyfile(nf4 / FILE, copy / FILE)
    assert "says not quantized" in refused(copy)


def test_config_faults_are_named(nf4: Path, tmp_path: Path) -> None:
    copy = damage(nf4, tmp_path)
    data = json.loads((copy / "config.json").read_text())
    for change, named in (({"method": 4}, "method"), ({"methods": "awq"}, "methods"), ({}, "'method' is missing")):
        data["quantized"]["t3"] = change
        (copy / "config.json").write_text(json.dumps(data))
        with pytest.raises(ConfigError, match=named):
            ModelConfig.from_directory(copy)


def test_appears_whole_or_not_at_all(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        Path(args[1]).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        quantize_model(demo, tmp_path / "out", "bnb-8bit")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_first(demo: Path, nf4: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there already"):
        quantize_model(demo, tmp_path, "bnb-8bit")
    with pytest.raises(OutputError, match="nowhere"):
        quantize_model(demo, tmp_path / "nowhere" / "out", "bnb-8bit")
    with pytest.raises(ConfigError, match="quantized already"):
        quantize_model(nf4, tmp_path / "out", "bnb-8bit")
    with pytest.raises(ConfigError, match="'fp8'"):
        quantize_model(demo, tmp_path / "out", "fp8")
    with pytest.raises(ConfigError, match="no texts"):
        quantize_model(demo, tmp_path / "out", "awq", texts=())
    config = ModelConfig.from_directory(demo)
    odd = dataclasses.replace(config, t3=dataclasses.replace(config.t3, intermediate_size=480))
    copy = damage(demo, tmp_path)
    (copy / "config.json").write_text(odd.to_json())
    with pytest.raises(CheckpointError, match="shape"):
        quantize_model(copy, tmp_path / "out", "awq")


def test_the_command(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8"
    assert main(["quantize", str(demo), "--method", "bnb-8bit", "-o", str(out)]) == 0
    assert f"{out}: T3 in bnb-8bit" in capsys.readouterr().out
    assert ModelConfig.from_directory(out).quantized.t3.method == "bnb-8bit"
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, named in (
        (("--method", "bnb-8bit", "-o", str(out)), "there already"),
        (("--method", "bnb-8bit", "--no-double-quant", "-o", "x"), "--no-double-quant"),
        (("--method", "bnb-4bit", "--voice", "clip.wav", "-o", "x"), "--voice"),
        (("--method", "awq", "--texts", str(tmp_path / "empty.txt"), "-o", str(tmp_path / "y")), "empty.txt"),
        (("--method", "awq", "--texts", str(tmp_path / "none.txt"), "-o", str(tmp_path / "y")), "none.txt"),
    ):
        assert main(["quantize", str(demo), *arguments]) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "y").exists()
