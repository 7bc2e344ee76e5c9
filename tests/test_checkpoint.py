"""Reading checkpoint files: weight norm, fused tensors, and every fault named by file and key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module, published_shapes
from chatterbox_vllm.errors import CheckpointError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.layout import check_parts, checkpoint_shapes
from chatterbox_vllm.families.registry import config_of

LAYOUTS = Path(__file__).parent / "parity" / "oracle" / "layouts"


class Fused(nn.Module):
    fused = {"weight": ("to_q.weight", "to_k.weight")}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 4))


class NormedConv(nn.Conv1d):
    weight_normed = True


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Fused()
        self.convolution = NormedConv(2, 3, 5)
        self.norm = nn.BatchNorm1d(3)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    reference = weight_norm(nn.Conv1d(2, 3, 5))
    return {
        "x.attention.to_q.weight": torch.randn(3, 4),
        "x.attention.to_k.weight": torch.randn(3, 4),
        **{f"x.convolution.{k}": v for k, v in reference.state_dict().items()},
        **{f"x.norm.{k}": v for k, v in nn.BatchNorm1d(3).state_dict().items()},
    }


def load(path: Path) -> Small:
    with torch.device("meta"):
        module = Small()
    load_module(module, Weights(path), "x.")
    return module


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_loads_published_names(tmp_path: Path, tensors: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    (torch.save if suffix == ".pt" else save_file)(tensors, path)
    module = load(path)
    fused = torch.cat([tensors["x.attention.to_q.weight"], tensors["x.attention.to_k.weight"]])
    torch.testing.assert_close(module.attention.weight.data, fused, rtol=0, atol=0)
    reference = weight_norm(nn.Conv1d(2, 3, 5))
    reference.load_state_dict({k.removeprefix("x.convolution."): v for k, v in tensors.items() if "convolution" in k})
    torch.testing.assert_close(module.convolution.weight.data, reference.weight.data)
    assert module.norm.num_batches_tracked.dtype == torch.int64
    assert published_shapes(Small(), "x.") == {key: tuple(value.shape) for key, value in tensors.items()}


def test_faults_name_file_and_key(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*no such"):
        Weights(path)
    save_file({k: v for k, v in tensors.items() if "to_k" not in k}, path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*x\.attention\.to_k\.weight.*missing"):
        load(path)
    save_file(tensors | {"x.norm.bias": torch.zeros(7)}, path)
    with pytest.raises(CheckpointError, match=r"x\.norm\.bias.*\(7,\).*\(3,\)"):
        load(path)
    with pytest.raises(CheckpointError, match=r"x\.norm\.bias.*\(7,\).*\(3,\)"):
        Weights(path).check({"x.norm.bias": (3,)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="truncated"):
        Weights(path)
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        Weights(path)


def test_a_file_of_more_layers_is_refused(babbler: Path) -> None:
    config = config_of(babbler)
    files = {part: Weights(babbler / getattr(ENGLISH, part)) for part in ("t3", "s3gen", "voice_encoder")}
    check_parts(config, files)
    shorter = replace(config, t3=replace(config.t3, num_layers=3))
    with pytest.raises(CheckpointError, match=r"t3_cfg.*tfmr\.layers\.3\..*only 3 of 'tfmr\.layers'"):
        check_parts(shorter, files)
    shorter = replace(config, s3gen=replace(config.s3gen, flow=replace(config.s3gen.flow, encoder_blocks=1)))
    with pytest.raises(CheckpointError, match=r"s3gen.*flow\.encoder\.encoders\.1\..*only 1 of"):
        check_parts(shorter, files)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "model.pt"
    torch.save({"weight": Evil()}, path)
    with pytest.raises(CheckpointError):
        Weights(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("part", "file", "unread"),
    [
        ("t3", "t3_cfg.safetensors", r"tfmr\.embed_tokens\.weight|text_head\.weight"),
        ("s3gen", "s3gen.safetensors", r"tokenizer\.window|.*\.num_batches_tracked"),
        ("voice_encoder", "ve.safetensors", "nothing"),
    ],
)
def test_modules_need_exactly_the_published_keys(part: str, file: str, unread: str) -> None:
    import re

    layout = json.loads((LAYOUTS / f"{file}.json").read_text())["tensors"]
    published = {key: tuple(shape) for key, (shape, _) in layout.items() if not re.fullmatch(unread, key)}
    assert checkpoint_shapes(ModelConfig())[part] == published
