"""Which card is measured, whose memory, and what a result file says of where it comes from."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from chatterbox_vllm.cuda.driver import Card, driver_version
from chatterbox_vllm.errors import DeviceError
from chatterbox_vllm.families.fingerprint import model_identity
from chatterbox_vllm.setup.probe import Probe
from chatterbox_vllm.setup.provenance import provenance

# As the driver numbers them, and as PyTorch does under CUDA_VISIBLE_DEVICES=GPU-cccc,GPU-aaaa.
CARDS = ["GPU-aaaa", "GPU-bbbb", "GPU-cccc", "MIG-dddd"]
VISIBLE = ["cccc", "aaaa", "dddd"]
MIB = 1 << 20


class Driver:
    """NVML and PyTorch of a machine with four cards: what processes hold, in MiB, by card and process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: dict[str, dict[int, int]], reserved: int = 0):
        self.held, self.busy = held, {card: 10 * i for i, card in enumerate(CARDS)}

        def by_uuid(name: str) -> str:
            if name not in CARDS:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            return name

        def processes(handle: str) -> list[Any]:
            return [SimpleNamespace(pid=p, usedGpuMemory=m * MIB) for p, m in self.held.get(handle, {}).items()]

        def utilization(handle: str) -> Any:
            if handle.startswith("MIG"):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return SimpleNamespace(gpu=self.busy[handle])

        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", by_uuid)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", processes)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilization)
        properties = lambda device: SimpleNamespace(uuid=VISIBLE[device.index])  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * MIB)


def seen(device: int) -> Any:
    with Probe(torch.device("cuda", device), interval=0.001) as probe:
        time.sleep(0.05)
    return probe.usage


def test_the_card_is_found_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, {})
    assert [Card.of(torch.device("cuda", i)).handle for i in range(3)] == ["GPU-cccc", "GPU-aaaa", "MIG-dddd"]
    assert seen(0).gpu_busy_share == pytest.approx(0.2) and seen(1).gpu_busy_share == 0
    assert seen(2).gpu_busy_share is None  # of a part of a card the driver does not tell


def test_only_this_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()
    Driver(monkeypatch, {"GPU-cccc": {1: 70_000, own: 3000}, "GPU-aaaa": {own: 50}}, reserved=2400)
    usage = seen(0)
    assert usage.peak_device_bytes == 3000 * MIB and usage.counted_by == "driver"
    assert usage.peak_host_bytes > 10 * MIB


def test_where_the_driver_does_not_know_this_process_the_allocator_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, {"GPU-cccc": {1: 70_000}}, reserved=2400)
    usage = seen(0)
    assert usage.peak_device_bytes == 2400 * MIB and usage.counted_by == "allocator"


def test_a_driver_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, {})
    VISIBLE_NOW = ["eeee"]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=VISIBLE_NOW[0]))
    with pytest.raises(DeviceError, match="nvidia-smi"), Probe(torch.device("cuda", 0)):
        pass
    VISIBLE_NOW[0] = "aaaa"
    del driver.busy["GPU-aaaa"]
    with pytest.raises(KeyError), Probe(torch.device("cuda", 0), interval=0.001):
        time.sleep(0.05)

    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    with pytest.raises(DeviceError, match="nvidia-smi"):
        driver_version()


def test_on_a_cpu_no_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", None)
    with Probe(torch.device("cpu")) as probe:
        pass
    assert probe.usage.peak_device_bytes is None and probe.usage.peak_host_bytes > 10 * MIB


def test_what_a_result_says_of_where_it_comes_from(
    babbler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    facts = provenance(torch.device("cpu"), "babble", babbler)
    assert facts["torch"] == torch.__version__ and facts["vllm"] and facts["python"].startswith("3.")
    assert facts["weights"] == "synthetic" and facts["family"] == "english" and facts["model"] == "babble"
    assert facts["ONEDNN_MAX_CPU_ISA"] == "AVX2" and facts["cores"] >= 1 and facts["threads"] >= 1
    assert isinstance(facts["instruction sets"], list) and facts["cpu"]
    (tmp_path / "config.json").write_text((babbler / "config.json").read_text().replace('"synthetic": true,', ""))
    assert model_identity(tmp_path)["weights"] == "unknown"


@pytest.mark.gpu
def test_on_a_card_what_this_process_takes_is_seen() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.empty_cache()  # of tests before it
    with Probe(device, interval=0.005) as before:
        time.sleep(0.1)
    with Probe(device, interval=0.005) as probe:
        block = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
        torch.cuda.synchronize()
        time.sleep(0.2)
        del block
    usage = probe.usage
    held = before.usage.peak_device_bytes or 0  # nothing before CUDA's context is made
    assert usage.peak_device_bytes is not None and 1 << 30 <= usage.peak_device_bytes - held < 3 << 30
    assert usage.counted_by in ("driver", "allocator") and usage.gpu_busy_share is not None
    facts = provenance(device)
    assert facts["gpu"] == torch.cuda.get_device_name(device) and facts["driver"][0].isdigit() and facts["cuda"]
