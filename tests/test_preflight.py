"""What is refused before an engine starts: card, driver, memory, disk, model length, watermark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm.errors import ConfigError, DeviceError, OutputError
from chatterbox_vllm.setup import device as devices
from chatterbox_vllm.setup import planning, preflight
from chatterbox_vllm.setup.tiers import CPU_PLAN, GIB, Plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def here(babbler: Path) -> planning.Settings:
    return planning.Settings(babbler, CPU, torch.float32, torch.float32, False, False, True)


@pytest.fixture
def fresh() -> Iterator[None]:
    """The watermark is looked for again."""
    preflight.cpu_watermarker.cache_clear()
    yield
    preflight.cpu_watermarker.cache_clear()


def test_a_plan_that_can_be_loaded_passes(here: planning.Settings) -> None:
    preflight.preflight(here, CPU_PLAN)


def test_a_watermark_that_cannot_be_made(here: planning.Settings, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perth.perth_net.perth_net_implicit.model.perth_net", None)
    with pytest.raises(ConfigError, match="resemble-perth.*watermark=False"):
        preflight.preflight(here, CPU_PLAN)
    preflight.preflight(replace(here, watermark=False), CPU_PLAN)


@pytest.mark.parametrize("length", [1, 201, 6151])
def test_lengths_in_which_nothing_can_be_said(length: int, here: planning.Settings) -> None:
    with pytest.raises(ConfigError, match=rf"max_model_len={length} (leaves no room.* take 202|is more than.*6150)"):
        planning.make_plan(here, max_model_len=length)
    assert planning.make_plan(here, max_model_len=202).max_model_len == 202


def test_weights_that_do_not_fit(here: planning.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda device: GIB)
    roomy = replace(CPU_PLAN, kv_cache_bytes=2 * GIB)
    with pytest.raises(DeviceError, match=r"take 2\.\d\d GiB, and 1\.00 GiB are free of the host's memory: lower"):
        preflight.preflight(here, roomy)
    # What is only estimated refuses nothing: the exact part of this plan fits.
    exact = planning.estimator_for(here, CPU_PLAN).estimate(CPU_PLAN).exact
    monkeypatch.setattr(preflight, "free_bytes", lambda device: exact)
    preflight.preflight(here, CPU_PLAN)


def test_free_memory_of_host_and_card(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 64 << 20 < preflight.free_bytes(CPU) < 1 << 50
    monkeypatch.setattr(preflight, "_left_of_the_container", lambda: 12345)
    assert preflight.free_bytes(CPU) == 12345
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 * GIB, 8 * GIB))
    assert preflight.free_bytes(CUDA) == 7 * GIB


def test_a_disk_without_room_for_compiled_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "not" / "yet"))
    preflight.check_disk()
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    with pytest.raises(OutputError, match=r"not/yet has 5 MiB free.*VLLM_CACHE_ROOT"):
        preflight.check_disk()


def test_a_card_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = {"found": (7, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability["found"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    with pytest.raises(DeviceError, match=r"Tesla V100 has compute capability 7\.0; this needs 7\.5"):
        devices.check_card(CUDA)
    capability["found"] = (7, 5)
    devices.check_card(CUDA)
    devices.check_card(CPU)


@pytest.mark.parametrize(
    ("driver", "cuda", "said"),
    [
        ("550.163.01", "13.0", r"its driver is 550\.163\.01, and CUDA 13\.0 needs 580 or newer; update the driver"),
        ("580.82.07", "13.0", "580.82.07, is new enough; check CUDA_VISIBLE_DEVICES"),
        ("525.60", "12.8", "new enough"),
        (None, "13.0", "driver does not answer.*nvidia-smi"),
    ],
)
def test_no_cuda_device_is_explained(driver: str | None, cuda: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> str:
        if driver is None:
            raise DeviceError("NVIDIA's driver does not answer (no library); check that nvidia-smi works here")
        return driver

    monkeypatch.setattr(devices, "driver_version", version)
    monkeypatch.setattr(devices, "vllm_device_type", lambda: "cuda")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=said):
        devices.resolve_device("cuda")


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    with pytest.raises(DeviceError, match="nvidia-smi"):
        devices.driver_version()


def test_a_float32_flow_counts_as_such(here: planning.Settings) -> None:
    half = replace(here, device=CUDA, dtype=torch.bfloat16, flow_dtype=torch.float16)
    single = replace(half, flow_dtype=torch.float32)
    small, large = (planning.estimator_for(s, Plan()).estimate(Plan()).device for s in (half, single))
    for part in ("S3Gen flow, quantizable layers", "S3Gen, the rest", "S3Gen working memory"):
        assert 1.7 < large[part] / small[part] <= 2, part
    assert large["T3 linear layers"] == small["T3 linear layers"]
    assert large["S3Gen, convolutions as kernels read them"] == 0 < small["S3Gen, convolutions as kernels read them"]
