"""Quantized checkpoints: written whole, loaded as they are, refused by name when damaged; and the command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm")
pytest.importorskip("bitsandbytes")

from chatterbox_vllm import ChatterboxTTS
from chatterbox_vllm.audio.encode import write_audio
from chatterbox_vllm.checkpoint.config import QuantizedPart, QuantizedParts
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cli import main
from chatterbox_vllm.errors import CheckpointError, ConfigError, DeviceError, OutputError
from chatterbox_vllm.families.english import ENGLISH, TOKENIZER
from chatterbox_vllm.families.layout import check_module_file, check_t3
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.files import stored_quantization
from chatterbox_vllm.quantization.fingerprint import DTYPE_NAMES, file_fingerprint, fingerprint
from chatterbox_vllm.setup import quantized_directory
from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.setup.quantize import calibration_voices, quantize_model
from chatterbox_vllm.setup.tiers import Plan

from .made_up_clips import babble

FILES = {part: getattr(ENGLISH, part) for part in ("t3", "s3gen", "voice_encoder")}
FILE = FILES["t3"]
T3_INT8 = QuantizationConfig("bnb-8bit")
AGGRESSIVE = QuantizationConfig.from_strategy("aggressive")


@pytest.fixture(scope="module")
def nf4(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three parts in NF4."""
    directory = tmp_path_factory.mktemp("made") / "nf4"
    quantize_model(babbler, directory, AGGRESSIVE)
    return directory


@pytest.fixture(scope="module")
def int8(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three parts in INT8."""
    directory = tmp_path_factory.mktemp("made") / "int8"
    quantize_model(babbler, directory, QuantizationConfig.from_strategy("conservative"))
    return directory


def read(file: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(file))


def test_what_is_written(babbler: Path, nf4: Path, int8: Path) -> None:
    assert {f.name for f in nf4.iterdir()} == {f.name for f in babbler.iterdir()}
    assert (nf4 / TOKENIZER).samefile(babbler / TOKENIZER)
    kept = {
        "t3": ("speech_head.weight", "text_emb.weight", "tfmr.layers.1.input_layernorm.weight"),
        "s3gen": ("flow.input_embedding.weight", "mel2wav.conv_pre.bias", "tokenizer.encoder.conv1.weight"),
        "voice_encoder": ("lstm.bias_ih_l0", "proj.bias"),
    }
    for directory, method, double in ((nf4, "bnb-4bit", True), (int8, "bnb-8bit", False)):
        config = config_of(directory)
        assert config.t3 == config_of(babbler).t3
        for part, file in FILES.items():
            tensors, plain = read(directory / file), read(babbler / file)
            stored = QuantizedPart(method, double, fingerprint(tensors))
            assert getattr(config.quantized, part) == stored_quantization(Weights(directory / file)) == stored
            assert (directory / file).stat().st_size < 0.9 * (babbler / file).stat().st_size
            assert (directory / file).stat().st_mode & 0o777 == 0o644
            # What is not quantized is as published.
            assert all(torch.equal(tensors[key], plain[key]) for key in kept[part])
            assert all(torch.equal(tensors[key], plain[key]) for key in tensors.keys() & plain.keys())


def test_made_again_it_is_the_same(babbler: Path, nf4: Path, tmp_path: Path) -> None:
    assert quantize_model(babbler, tmp_path / "again", AGGRESSIVE) == config_of(nf4)
    flat = quantize_model(babbler, tmp_path / "flat", dataclasses.replace(AGGRESSIVE, double_quant=False)).quantized
    for part, file in FILES.items():
        assert not getattr(flat, part).double_quant
        scales = {tensor.dtype for key, tensor in read(tmp_path / "flat" / file).items() if key.endswith(".scales")}
        assert scales == {torch.float32}
        assert (tmp_path / "flat" / file).stat().st_size > (tmp_path / "again" / file).stat().st_size


def test_one_part_alone(babbler: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    config = quantize_model(
        babbler, tmp_path / "out", QuantizationConfig(s3gen="bnb-8bit"), progress=lambda *at: told.append(at)
    )
    assert config.quantized == QuantizedParts(s3gen=config.quantized.s3gen)
    for part in ("t3", "voice_encoder"):
        assert (tmp_path / "out" / FILES[part]).samefile(babbler / FILES[part])
    assert told == [("s3gen", i, 31) for i in range(1, 32)]


def test_part_after_part(babbler: Path, nf4: Path, tmp_path: Path) -> None:
    quantize_model(babbler, tmp_path / "one", QuantizationConfig(voice_encoder="bnb-4bit"))
    # AWQ's calibration can still take its voices from clips.
    write_audio(tmp_path / "clip.wav", babble(1), 24_000)
    one = config_of(tmp_path / "one")
    (voice,) = calibration_voices(tmp_path / "one", one, [tmp_path / "clip.wav"], torch.device("cpu"))
    assert bool(voice.conditioning.speaker_embedding.isfinite().all())
    two = quantize_model(tmp_path / "one", tmp_path / "two", QuantizationConfig("bnb-4bit", "bnb-4bit"))
    assert two == config_of(tmp_path / "two") == config_of(nf4)
    with pytest.raises(ConfigError, match="one: voice_encoder is quantized already, in bnb-4bit; name"):
        quantize_model(tmp_path / "one", tmp_path / "three", AGGRESSIVE)


def test_speaks_from_the_directory(babbler: Path, nf4: Path, tmp_path: Path) -> None:
    """What is loaded is, to the bit, what quantizing while loading gives; and every part is seen to be quantized."""

    def speak(directory: Path, **options: Any) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
        with ChatterboxTTS.from_local(
            directory, "cpu", max_model_len=256, max_batch_size=1, watermark=False, **options
        ) as tts:
            assert tts.t3_stage.options.quantization == "bnb-4bit" and tts.t3_stage.options.dtype == torch.float32
            assert tts.quantization == AGGRESSIVE
            wave = tts.generate("Hello.", max_tokens=40, seed=1)
            voice = tts._enroller.enrol(babble(2), tts.sr)
            return tts.get_quantization_info(), wave, voice.conditioning.speaker_embedding

    info, wave, speaker = speak(nf4)
    assert torch.isfinite(wave).all() and wave.abs().max() > 0.01
    for part in FILES:
        assert info[part]["method"] == "bnb-4bit" and info[part]["quantized_layers"] > 0
        assert info[part]["bytes_per_weight"] <= 0.53
    again, same_wave, same_speaker = speak(babbler, quantization=AGGRESSIVE)
    assert torch.equal(wave, same_wave) and torch.equal(speaker, same_speaker)
    assert {part: info[part] for part in FILES} == {part: again[part] for part in FILES}


def test_another_method_is_refused_and_a_tier_leaves_it_alone(
    nf4: Path, int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, file in FILES.items():
        with pytest.raises(ConfigError, match=f"{file} is quantized as bnb-4bit already.*as bnb-8bit"):
            ChatterboxTTS.from_local(nf4, "cpu", quantization=QuantizationConfig(**{part: "bnb-8bit"}))

    def note(settings: Any, plan: Any) -> Any:
        asked.append(plan.quantization)
        raise DeviceError("far enough")

    asked: list[QuantizationConfig] = []
    monkeypatch.setattr("chatterbox_vllm.setup.loading.assemble", note)
    # Neither a tier's methods nor a fallback can change what is stored.
    for options in ({"tier": 4}, {"quantization": QuantizationConfig.from_strategy("conservative"), "fallback": True}):
        with pytest.raises(DeviceError, match="far enough"):
            ChatterboxTTS.from_local(int8, "cpu", **options)
    assert asked == [QuantizationConfig(), QuantizationConfig.from_strategy("conservative")]


def test_a_stored_method_needs_its_library(nf4: Path, no_bitsandbytes: None) -> None:
    with pytest.raises(ConfigError, match="t3 cannot be quantized by bnb-4bit here.*pip install .bitsandbytes>="):
        ChatterboxTTS.from_local(nf4, "cpu")


def test_estimates_count_what_is_stored(
    babbler: Path, nf4: Path, int8: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for directory, config in ((nf4, AGGRESSIVE), (int8, QuantizationConfig.from_strategy("conservative"))):
        estimate = QuantizationMemoryEstimator(directory).estimate(Plan())
        assert estimate == QuantizationMemoryEstimator(babbler).estimate(Plan(config))
        assert estimate != QuantizationMemoryEstimator(babbler).estimate(Plan())
    # The other tiers' methods are not what this directory would be loaded with.
    assert main(["estimate", str(int8), "--json"]) == 0
    names = list(json.loads(capsys.readouterr().out))
    assert len(names) == 6 and all("t3 bnb-8bit, s3gen bnb-8bit, voice_encoder bnb-8bit" in name for name in names)
    for arguments, named in ((("--strategies",), "--strategies"), (("--quantization", "nf4"), "already")):
        assert main(["estimate", str(int8), *arguments]) == 2
        assert named in capsys.readouterr().err


def damage(directory: Path, tmp_path: Path) -> Path:
    """A copy to be damaged; its files are no links."""
    copy = tmp_path / "damaged"
    shutil.copytree(directory, copy)
    return copy


def refused(directory: Path, file: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        ChatterboxTTS.from_local(directory, "cpu")
    assert str(directory / file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("part", FILES)
def test_damaged_files_are_refused_by_name(part: str, babbler: Path, nf4: Path, int8: Path, tmp_path: Path) -> None:
    copy, file = damage(nf4, tmp_path), FILES[part]
    path = copy / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert "truncated" in refused(copy, file)
    shutil.copyfile(int8 / file, path)
    message = refused(copy, file)
    assert "bnb-8bit" in message and "bnb-4bit" in message and "chatterbox-vllm quantize" in message
    shutil.copyfile(babbler / file, path)
    assert "not quantized" in refused(copy, file)
    # The right header over other tensors.
    header, tensors = Weights(nf4 / file).metadata, load_file(nf4 / file)
    key = next(key for key in sorted(tensors) if key.endswith(".scales_8bit"))
    plain = next(key for key in sorted(tensors) if key.endswith(("bias", "norm.weight")))
    for change, named in (
        ({k: v for k, v in tensors.items() if k != key}, key),
        ({k: v for k, v in tensors.items() if k != plain}, plain),
        (tensors | {key: torch.zeros(7, dtype=torch.uint8)}, "(7,)"),
        (tensors | {key: tensors[key].float()}, "F32, not U8"),
    ):
        save_file(change, path, metadata=header)
        assert named in refused(copy, file)
    save_file(tensors, path, metadata=header | {"chatterbox_quantized": "{"})
    assert "header" in refused(copy, file)
    # Another run's file of the same method: only the fingerprint tells.
    other = json.loads(header["chatterbox_quantized"]) | {"fingerprint": "0" * 64}
    save_file(tensors, path, metadata=header | {"chatterbox_quantized": json.dumps(other)})
    assert "000000000000" in refused(copy, file)
    path.write_bytes(whole)
    # Nothing wrong with it now.
    config = config_of(copy)
    check_t3(config, Weights(copy / FILE))
    check_module_file(config, "s3gen", Weights(copy / FILES["s3gen"]))
    check_module_file(config, "voice_encoder", Weights(copy / FILES["voice_encoder"]))


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("made", ["nf4", "int8"])
def test_other_contents_are_refused_by_name(
    part: str, made: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    copy, file = damage(request.getfixturevalue(made), tmp_path), FILES[part]
    path, weights = copy / file, Weights(copy / file)
    whole = bytearray(path.read_bytes())
    # One bit of the last byte, whatever tensor that is, and of one in the middle.
    for at in (len(whole) - 1, len(whole) // 2):
        whole[at] ^= 1
        path.write_bytes(whole)
        message = refused(copy, file)
        assert "fingerprint" in message and "damaged" in message and "chatterbox-vllm quantize" in message
        whole[at] ^= 1
    # Tensors of the right shapes and dtypes under the old header.
    tensors = read(path)
    key = next(key for key in sorted(tensors) if key.endswith(("packed", "codes")))
    save_file(tensors | {key: tensors[key].flip(0)}, path, metadata=weights.metadata)
    assert "fingerprint" in refused(copy, file)


def test_a_fingerprint_is_the_same_in_memory_and_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {str(i): torch.arange(24).reshape(4, 6).to(dtype) for i, dtype in enumerate(DTYPE_NAMES)}
    tensors |= {"scalar": torch.tensor(0.5), "empty": torch.empty(0, 3), "view": torch.arange(12.0).reshape(3, 4).t()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"any": "header"})
    monkeypatch.setattr("chatterbox_vllm.quantization.fingerprint._BLOCK", 7)
    assert file_fingerprint(path) == fingerprint(tensors)
    assert fingerprint(tensors | {"view": tensors["view"].contiguous().reshape(3, 4)}) != fingerprint(tensors)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="too early"):
        file_fingerprint(path)


def test_a_quantized_file_in_a_plain_directory_is_refused(babbler: Path, nf4: Path, tmp_path: Path) -> None:
    copy = damage(babbler, tmp_path)
    for file in FILES.values():
        shutil.copyfile(nf4 / file, copy / file)
        assert "says not quantized" in refused(copy, file)
        shutil.copyfile(babbler / file, copy / file)


def test_config_faults_are_named(nf4: Path, tmp_path: Path) -> None:
    copy = damage(nf4, tmp_path)
    data = json.loads((copy / "config.json").read_text())
    for change, named in (
        ({"method": 4}, "method"),
        ({"methods": "awq"}, "methods"),
        ({}, "method: the field is missing"),
    ):
        data["quantized"]["t3"] = change
        (copy / "config.json").write_text(json.dumps(data))
        with pytest.raises(ConfigError, match=named):
            config_of(copy)


def test_appears_whole_or_not_at_all(babbler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        Path(args[1]).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantized_directory, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        quantize_model(babbler, tmp_path / "out", T3_INT8)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_first(babbler: Path, nf4: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there already"):
        quantize_model(babbler, tmp_path, T3_INT8)
    with pytest.raises(OutputError, match="nowhere"):
        quantize_model(babbler, tmp_path / "nowhere" / "out", T3_INT8)
    with pytest.raises(ConfigError, match="quantized already"):
        quantize_model(nf4, tmp_path / "out", T3_INT8)
    with pytest.raises(ConfigError, match="'fp8'"):
        quantize_model(babbler, tmp_path / "out", QuantizationConfig("fp8"))
    with pytest.raises(ConfigError, match="nothing to quantize"):
        quantize_model(babbler, tmp_path / "out", QuantizationConfig())
    with pytest.raises(ConfigError, match="no texts"):
        quantize_model(babbler, tmp_path / "out", QuantizationConfig("awq"), texts=())
    config = config_of(babbler)
    odd = dataclasses.replace(config, t3=dataclasses.replace(config.t3, intermediate_size=480))
    copy = damage(babbler, tmp_path)
    (copy / "config.json").write_text(odd.to_json())
    with pytest.raises(CheckpointError, match="shape"):
        quantize_model(copy, tmp_path / "out", QuantizationConfig("awq"))
    (copy / "config.json").write_text(config.to_json())
    for part in ("s3gen", "voice_encoder"):
        # Also where it is only taken along.
        (copy / FILES[part]).unlink()
        shutil.copyfile(babbler / FILE, copy / FILES[part])
        for quantization in (QuantizationConfig(**{part: "bnb-8bit"}), QuantizationConfig("bnb-8bit")):
            with pytest.raises(CheckpointError, match=FILES[part]):
                quantize_model(copy, tmp_path / "out", quantization)
        shutil.copyfile(babbler / FILES[part], copy / FILES[part])


def test_a_full_disk_leaves_nothing(babbler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"the beginning")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("chatterbox_vllm.setup.quantized_directory.save_file", full)
    with pytest.raises(OutputError, match="cannot be written .*No space left.*nothing was left"):
        quantize_model(babbler, tmp_path / "out", QuantizationConfig(voice_encoder="bnb-8bit"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError, match="too long"):
        quantize_model(babbler, tmp_path / ("x" * 300), QuantizationConfig(voice_encoder="bnb-8bit"))


def test_the_command(babbler: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "int8"
    assert main(["quantize", str(babbler), "--method", "bnb-8bit", "--voice-encoder", "bnb-4bit", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: t3 in bnb-8bit, {FILE}" in said and f"{out}: voice_encoder in bnb-4bit" in said
    found = config_of(out).quantized
    assert (found.t3.method, found.s3gen, found.voice_encoder.method) == ("bnb-8bit", None, "bnb-4bit")
    mixed = tmp_path / "mixed"
    assert main(["quantize", str(babbler), "--strategy", "mixed", "--no-double-quant", "-o", str(mixed)]) == 0
    found = config_of(mixed).quantized
    assert [found.t3.method, found.s3gen.method, found.voice_encoder.method] == ["bnb-4bit", "bnb-8bit", "bnb-4bit"]
    assert not found.t3.double_quant and not found.voice_encoder.double_quant
    capsys.readouterr()
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, named in (
        (("--method", "bnb-8bit", "-o", str(out)), "there already"),
        (("-o", "x"), "nothing to quantize"),
        (("--strategy", "mixed", "--s3gen", "bnb-4bit", "-o", "x"), "--quantization-strategy mixed"),
        (("--method", "bnb-8bit", "--no-double-quant", "-o", "x"), "--no-double-quant"),
        (("--s3gen", "bnb-8bit", "--voice", "clip.wav", "-o", "x"), "--voice"),
        (("--s3gen", "bnb-8bit", "--device", "cpu", "-o", "x"), "--device"),
        (("--method", "awq", "--texts", str(tmp_path / "empty.txt"), "-o", str(tmp_path / "y")), "empty.txt"),
        (("--method", "awq", "--texts", str(tmp_path / "none.txt"), "-o", str(tmp_path / "y")), "none.txt"),
    ):
        assert main(["quantize", str(babbler), *arguments]) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "y").exists()
