"""Trained parts become a checkpoint that the package's own loading reads."""

from __future__ import annotations

import wave
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from training import copy_synthesis, export
from training.codes import Codes
from training.flow import FlowNetworks
from training.frames import Features
from training.hift import initialise
from training.small import SMALL, parameters_by_part
from training.weights import keep_weights

from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.checkpoint.packed import SCALE, pack, unpack
from chatterbox_vllm.families.babble import BABBLE_CONFIG
from chatterbox_vllm.families.layout import check_parts, checkpoint_shapes
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.s3gen.vocoder.hift import HiFT
from chatterbox_vllm.voices.voice import Voice
from tests.test_training_flow import TINY
from tests.test_training_frames import spoken, write_corpus
from tests.test_training_hift import TINY as TINY_HIFT

CONFIG: ModelConfig = replace(
    BABBLE_CONFIG, synthetic=False, s3gen=replace(BABBLE_CONFIG.s3gen, flow=TINY.flow, hift=TINY_HIFT)
)


def trained(parts: Path) -> tuple[FlowNetworks, HiFT]:
    torch.manual_seed(0)
    flow, hift = FlowNetworks(CONFIG.s3gen), HiFT(TINY_HIFT)
    flow.initialise(torch.zeros(80))
    initialise(hift)
    keep_weights(parts / "flow", flow.state_dict(), asdict(TINY.flow))
    keep_weights(parts / "hift", hift.state_dict(), asdict(TINY_HIFT))
    return flow, hift


def test_published_tensors_are_what_loading_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = S3Gen(CONFIG.s3gen)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    tensors = {k: v for prefix, part in model.published_parts().items() for k, v in _published(part, prefix).items()}
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    of_file = checkpoint_shapes(CONFIG)["s3gen"]
    assert shapes == {k: v for k, v in of_file.items() if not k.startswith(("tokenizer.", "speaker_encoder."))}
    save_file(tensors, tmp_path / "s3gen.safetensors")
    again = S3Gen.from_weights(CONFIG.s3gen, Weights(tmp_path / "s3gen.safetensors"), "cpu")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-6, atol=1e-6)


def _published(part: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return export.published_tensors(part, prefix)


def test_8_bits_are_near_and_half_the_size() -> None:
    torch.manual_seed(0)
    tensors = {"a.weight": torch.randn(64, 32, 3), "a.bias": torch.randn(64), "keep.weight": torch.randn(8, 8)}
    packed = pack(tensors, lambda key: key.startswith("keep"))
    assert packed["a.weight"].dtype == torch.int8 and packed["a.weight" + SCALE].shape == (64,)
    again = unpack(packed)
    assert again.keys() == tensors.keys()
    error = (again["a.weight"].float() - tensors["a.weight"]).norm() / tensors["a.weight"].norm()
    assert 1e-4 < error < 0.01
    torch.testing.assert_close(again["a.bias"], tensors["a.bias"])
    torch.testing.assert_close(again["keep.weight"], tensors["keep.weight"])


def test_a_model_is_written_loaded_packed_and_made_again(tmp_path: Path) -> None:
    flow, hift = trained(tmp_path / "parts")
    corpus = write_corpus(tmp_path / "corpus", [spoken(3.0, 110 + 20 * i) for i in range(4)])
    out = tmp_path / "model"
    export.export(tmp_path / "parts", out, CONFIG, ["tokenizer", "xvector", "voice_encoder", "t3", "text"])
    assert config_of(out) == CONFIG
    export.enrol_voices(corpus, ["s1", "s0"], out, CONFIG, 5.0)
    Voice.load(out / "conds.pt", CONFIG)
    Voice.load(out / "voices" / "s0.pt", CONFIG)
    with torch.device("meta"):
        loaded = HiFT(TINY_HIFT)
    load_module(loaded, Weights(out / "s3gen.safetensors"), "mel2wav.")
    torch.testing.assert_close(loaded.state_dict(), hift.state_dict(), rtol=2e-3, atol=1e-4)
    model = S3Gen.from_weights(CONFIG.s3gen, Weights(out / "s3gen.safetensors"), "cpu")
    for name, value in flow.published_state().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=3e-3, atol=1e-3)

    export.write_packed(out)
    assert all(part.stat().st_size <= 15_000_000 for part in (out / "packed").iterdir())
    export.read_packed(out / "packed", tmp_path / "again")
    check_parts(CONFIG, {part: Weights(tmp_path / "again" / name) for part, name in export.FILES.items()})
    a, b = (load_file(directory / "s3gen.safetensors") for directory in (out, tmp_path / "again"))
    key = "flow.encoder.encoders.0.self_attn.linear_q.weight"
    assert (a[key].float() - b[key].float()).norm() < 0.01 * a[key].float().norm()
    assert (tmp_path / "again" / "voices" / "s0.pt").read_bytes() == (out / "voices" / "s0.pt").read_bytes()


def test_a_part_that_was_not_trained_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="t3"):
        export.export(tmp_path, tmp_path / "out", CONFIG, ["tokenizer", "xvector", "voice_encoder", "flow", "hift"])


def test_the_small_model_takes_at_most_25_megabytes_in_8_bits() -> None:
    counts = parameters_by_part(SMALL)
    assert set(counts) >= {"T3", "vocoder", "speech tokenizer", "voice encoder", "x-vector net"}
    assert sum(counts.values()) < 24_500_000


def test_copies_are_written_with_lists_for_the_judge(tmp_path: Path) -> None:
    trained(tmp_path / "parts")
    corpus = write_corpus(tmp_path / "corpus", [spoken(1.2 + 0.1 * i, 110 + 20 * i) for i in range(4)])
    counts = Features.of(corpus, torch.device("cpu"), 80).counts
    rng = np.random.default_rng(0)
    Codes(rng.integers(0, 6561, counts.sum()), counts, rng.standard_normal((4, 192)), np.ones((4, 8))).write(
        tmp_path / "codes"
    )
    given = ["--corpus", str(tmp_path / "corpus"), "--tokens", str(tmp_path / "codes"), "--device", "cpu"]
    copy_synthesis.main(
        CONFIG.s3gen, [*given, "--parts", str(tmp_path / "parts"), "--out", str(tmp_path / "out"), "--steps", "2"]
    )
    for kind in copy_synthesis.KINDS:
        header, row = (tmp_path / "out" / f"{kind}.tsv").read_text().splitlines()
        assert header.split("\t") == ["file", "text", "voice", "seconds"]
        name, text, voice, _ = row.split("\t")
        assert (text, voice) == ("A b.", "s1")
        with wave.open(str(tmp_path / "out" / name), "rb") as file:
            assert (file.getframerate(), file.getnframes()) == (24_000, 960 * counts[3])
