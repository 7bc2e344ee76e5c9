"""Tiers as data, estimates from headers against live bytes, and how keywords, environment and tier make a plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("vllm")

from chatterbox_vllm.checkpoint.config import CONFIG_FILE, ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cli import main
from chatterbox_vllm.errors import ConfigError, DeviceError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.layout import checkpoint_shapes
from chatterbox_vllm.families.registry import FAMILIES, config_of
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.live import component_info
from chatterbox_vllm.quantization.storage import Int8, scheme_of
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.setup import planning
from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.setup.tiers import CPU_PLAN, GIB, TIERS, Plan, tier_for, tier_named
from chatterbox_vllm.t3.kv_cache import kv_cache_bytes

MIB = 1 << 20
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_MODEL_LEN", "MAX_BATCH_SIZE", "GPU_MEMORY_UTILIZATION"):
        monkeypatch.delenv(f"CHATTERBOX_{name}", raising=False)


def write_headers(directory: Path, family: Family) -> Path:
    """Headers of the published size: files with holes for data, which nobody reads."""
    shapes = checkpoint_shapes(family.config)
    for part in ("t3", "s3gen", "voice_encoder"):
        header, at = {}, 0
        for key, shape in shapes[part].items():
            size = 4 * torch.Size(shape).numel()
            header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (directory / getattr(family, part)).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
    (directory / CONFIG_FILE).write_text(family.config.to_json())
    return directory


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = write_headers(tmp_path_factory.mktemp("full"), ENGLISH)
    yield directory
    shutil.rmtree(directory)


def test_tiers_are_ordered_and_within_their_cards() -> None:
    assert [tier.gb for tier in TIERS] == sorted(tier.gb for tier in TIERS) and TIERS[0].gb == 4
    for tier in TIERS:
        assert tier.budget < tier.gb * 10**9
        assert tier_named(tier.gb) is tier_named(str(tier.gb)) is tier
        assert tier_for(tier.budget) is tier and tier_for(tier.budget + MIB) is tier
    assert tier_for(1 << 40) is TIERS[-1]
    assert tier_for(TIERS[1].budget - 1) is TIERS[0]
    with pytest.raises(DeviceError, match=r"2\.00 GiB are free .* 3 GiB"):
        tier_for(2 * GIB)
    with pytest.raises(ConfigError, match="auto or one of 4, 6, .*not 'tiny'"):
        tier_named("tiny")


def test_every_tier_stays_under_its_budget(full_size: Path) -> None:
    estimator = QuantizationMemoryEstimator(full_size)
    estimates = estimator.tiers()
    for tier in TIERS:
        assert estimates[tier.gb].device_total < tier.budget
    assert "enrolment nets" in estimates[4].host and "enrolment nets" in estimates[12].device
    # Published sizes, known from elsewhere: 480 M weights in T3's linear layers, 240 KiB of KV a position.
    assert estimates[12].device["T3 linear layers"] == 960 * MIB
    assert estimates[4].device["T3 linear layers"] / (480 * MIB) == pytest.approx(0.516, abs=0.001)
    assert estimates[4].device["T3 KV cache"] == (1280 + 2 * 16) * 240 * 1024


# GiB at the peak while requests of 10 s were spoken after a clip of 8.7 s, 935 mel frames each; 0 is no tier and one
# request at a time (benchmarks/results/2026-11-26-h100-tiers.json; 24, 48 and the multilingual model on an H200,
# 2026-11-27-h200-tiers.json).
PEAKS = {
    "english": {0: 3.875, 4: 1.736, 6: 2.248, 8: 4.646, 12: 7.406, 24: 13.639, 48: 27.812},
    "multilingual": {0: 3.887, 4: 1.738, 6: 2.250, 8: 4.746, 12: 7.439, 24: 13.633},
    "turbo": {0: 3.104, 4: 1.455, 6: 1.930, 8: 4.242, 12: 6.549, 24: 10.711},
    "nano": {0: 2.518, 4: 1.254, 6: 1.549, 8: 3.504, 12: 5.195, 24: 7.484},
    "flash": {0: 3.732, 4: 1.748, 6: 2.254, 8: 4.645, 12: 7.564},
}
# And after a clip of 12 s, of which 10 are a prompt, 1,000 frames (an H100, Turbo on an H200; 2026-11-28-tiers.json).
PEAKS_LONGER = {
    "turbo": {24: 11.223, 48: 21.168},
    "nano": {48: 13.398},
    "flash": {24: 14.871, 48: 31.580},
}


@pytest.mark.parametrize(
    ("name", "frames", "peaks"),
    [(name, 935, peaks) for name, peaks in PEAKS.items()]
    + [(name, 1000, peaks) for name, peaks in PEAKS_LONGER.items()],
)
def test_estimates_are_near_what_cards_took(name: str, frames: int, peaks: dict[int, float], tmp_path: Path) -> None:
    estimator, off = QuantizationMemoryEstimator(write_headers(tmp_path, FAMILIES[name])), {}
    for gb, peak in peaks.items():
        plan = tier_named(gb).plan if gb else Plan(max_batch_size=1, s3gen_batch=1)
        spoken = estimator.estimate(replace(plan, s3gen_frames=frames * plan.s3gen_batch), longest=frames)
        off[gb] = spoken.device_total / GIB / peak - 1
        assert peak * GIB < estimator.estimate(plan).device_total  # which has room for longer ones
    assert {gb: share for gb, share in off.items() if abs(share) > 0.05} == {}


def test_strategies_compare(full_size: Path) -> None:
    found = QuantizationMemoryEstimator(full_size).compare_strategies(TIERS[0].plan)
    totals = {name: estimate.device_total for name, estimate in found.items()}
    assert totals["none"] > totals["conservative"] == totals["int8"] > totals["mixed"] > totals["aggressive"]
    assert totals["aggressive"] == totals["nf4"]
    assert totals["none"] - totals["aggressive"] > 0.8 * GIB


@pytest.mark.parametrize("config", [QuantizationConfig(), QuantizationConfig(s3gen="bnb-8bit"),
                                    QuantizationConfig(s3gen="bnb-4bit", double_quant=False)], ids=str)  # fmt: skip
@pytest.mark.parametrize("half", [False, True])
def test_estimated_weights_are_the_live_ones(config: QuantizationConfig, half: bool, babbler: Path) -> None:
    estimate = QuantizationMemoryEstimator(babbler, half, cuda=False).estimate(Plan(config)).device
    dtype = torch.float16 if half else torch.float32
    scheme = None if config.s3gen is None else scheme_of(config.s3gen, config.double_quant)
    model = S3Gen.from_weights(
        config_of(babbler).s3gen,
        Weights(babbler / ENGLISH.s3gen),
        "cpu",
        dtype,
        dtype,
        quantization=scheme,
    )
    live = component_info(model).total_bytes
    counted = estimate["S3Gen flow, quantizable layers"] + estimate["S3Gen, the rest"]
    assert live == counted
    if scheme is not None:
        assert component_info(model).quantized_bytes == estimate["S3Gen flow, quantizable layers"]


def test_a_quantized_file_is_counted_as_stored(babbler: Path, tmp_path: Path) -> None:
    for file in (ENGLISH.s3gen, ENGLISH.voice_encoder, CONFIG_FILE):
        shutil.copy(babbler / file, tmp_path)
    layer = "tfmr.layers.0.self_attn."
    tensors = {
        "tfmr.norm.weight": torch.zeros(4),
        f"{layer}o_proj.packed": torch.zeros(128, 1, dtype=torch.uint8),
        f"{layer}o_proj.scales": torch.zeros(4),
        f"{layer}q_proj.weight": torch.zeros(8, 16),
        f"{layer}k_proj.weight": torch.zeros(8, 16),
    }
    save_file(tensors, tmp_path / ENGLISH.t3)
    estimate = QuantizationMemoryEstimator(tmp_path).estimate(Plan(QuantizationConfig("bnb-8bit"))).device
    assert estimate["T3 linear layers"] == 128 + 16 + Int8().stored_bytes((16, 16))
    assert estimate["T3 embeddings and head"] == 4 * 2


def settings(directory: Path, device: str = "cpu") -> planning.Settings:
    half = device == "cuda"
    dtype = torch.bfloat16 if half else torch.float32
    return planning.Settings(directory, torch.device(device), dtype, dtype, half, False, False)


def test_precedence_of_keyword_environment_tier_default(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, here = planning.make_plan, settings(babbler)
    assert make(here) == CPU_PLAN
    four = make(here, tier=4)
    assert (four.max_model_len, four.max_batch_size) == (1280, 1) and four.quantization.t3 == "bnb-4bit"
    monkeypatch.setenv("CHATTERBOX_MAX_MODEL_LEN", "700")
    monkeypatch.setenv("CHATTERBOX_MAX_BATCH_SIZE", "5")
    assert (make(here).max_model_len, make(here, tier=4).max_batch_size) == (700, 5)
    assert make(here, tier=4, max_model_len=300, max_batch_size=2).max_model_len == 300
    assert make(here, tier=4, quantization=QuantizationConfig()).quantization == QuantizationConfig()
    monkeypatch.setenv("CHATTERBOX_MAX_MODEL_LEN", "long")
    with pytest.raises(ConfigError, match="CHATTERBOX_MAX_MODEL_LEN"):
        make(here)
    assert make(here, max_model_len=300).max_model_len == 300
    with pytest.raises(ConfigError, match="max_batch_size must be a positive integer, not 0"):
        make(here, max_model_len=300, max_batch_size=0)


def test_how_long_a_prompt_streams_continue_behind(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens(**options: object) -> int:
        return planning.make_settings(babbler, "cpu", **options).stream_prompt

    assert tokens() == 250 and tokens(stream_prompt_seconds=10) == 250
    assert (tokens(stream_prompt_seconds=3), tokens(stream_prompt_seconds=1.48)) == (75, 37)
    for wrong in (0.96, 3.01, 10.04, 0, -2, True, float("nan"), "all"):
        with pytest.raises(ConfigError, match="stream_prompt_seconds must be seconds from 1 to 10 in steps of 0.04"):
            tokens(stream_prompt_seconds=wrong)
    monkeypatch.setenv("CHATTERBOX_STREAM_PROMPT_SECONDS", "4")
    assert tokens() == 100 and tokens(stream_prompt_seconds=3) == 75
    monkeypatch.setenv("CHATTERBOX_STREAM_PROMPT_SECONDS", "a bit")
    with pytest.raises(ConfigError, match="variable CHATTERBOX_STREAM_PROMPT_SECONDS must be seconds from 1"):
        tokens()


def test_what_needs_a_gpu(babbler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = settings(babbler)
    with pytest.raises(ConfigError, match="tier='auto' goes by the free memory of a GPU"):
        planning.make_plan(here, tier="auto")
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0\.5 needs a CUDA device"):
        planning.make_plan(here, gpu_memory_utilization=0.5)
    monkeypatch.setenv("CHATTERBOX_GPU_MEMORY_UTILIZATION", "0.5")
    with pytest.raises(ConfigError, match=r"CHATTERBOX_GPU_MEMORY_UTILIZATION=0\.5 needs a CUDA device"):
        planning.make_plan(here)
    # The narrower keyword goes before the variable.
    assert planning.make_plan(here, kv_cache_bytes=1 << 30).kv_cache_bytes == 1 << 30
    assert planning.strategy_for("auto", torch.device("cpu")) == QuantizationConfig.from_strategy("conservative")


def test_plans_for_a_gpu(full_size: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"free": 3.5, "total": 24.0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(card["free"] * GIB), int(card["total"] * GIB)))
    here = settings(full_size, "cuda")
    assert planning.make_plan(here, tier="auto") == TIERS[0].plan
    assert planning.strategy_for("auto", here.device) == TIERS[0].plan.quantization
    assert planning.make_plan(here).s3gen_batch == 16
    with pytest.raises(ConfigError, match=r"tier 4 promises to stay under 3\.00 GiB.*max_batch_size=16.*larger tier"):
        planning.make_plan(here, tier=4, max_batch_size=16)
    card["free"] = 23.0
    assert planning.strategy_for("auto", here.device) == QuantizationConfig()

    half = planning.make_plan(here, gpu_memory_utilization=0.5, max_batch_size=4)
    total = QuantizationMemoryEstimator(full_size).estimate(half).device_total
    assert total == pytest.approx(12 * GIB, abs=2)
    assert half.kv_cache_bytes > kv_cache_bytes(ModelConfig().t3, 2, 2048, 4, "cuda")
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0\.1 of 24\.00 GiB leaves 0\.00 GiB"):
        planning.make_plan(here, gpu_memory_utilization=0.1)
    with pytest.raises(ConfigError, match="either kv_cache_bytes or gpu_memory_utilization"):
        planning.make_plan(here, gpu_memory_utilization=0.5, kv_cache_bytes=1 << 30)


def test_the_command(full_size: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(full_size), "--tier", "4", "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out).values()
    assert facts["device_total"] == sum(facts["device"].values()) < facts["budget"] == 3 * GIB
    assert main(["estimate", str(full_size), "--strategies", "--tier", "8"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("on the device, together") == 6 and "8 GB, mixed" in shown
    assert main(["estimate", str(full_size), "--tier", "5"]) == 2
    assert "tier must be auto or one of 4, 6, 8, 12, 24, 48 (GB), not '5'" in capsys.readouterr().err
