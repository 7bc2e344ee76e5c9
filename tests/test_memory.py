"""Segments that grow, where the driver can; where it cannot, a warning and the usual allocator."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from chatterbox_vllm.cuda.memory import spare_device_memory


@pytest.fixture
def set_to(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the allocator was told, on a machine without a GPU."""
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    for name in ("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE"):
        monkeypatch.setenv(name, "set by the user")
    return told


def test_segments_grow_where_they_can(set_to: list[str], caplog: pytest.LogCaptureFixture) -> None:
    spare_device_memory("cpu")
    assert set_to == ["expandable_segments:True"] and not caplog.records


def test_a_driver_that_cannot(
    set_to: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA driver error: operation not supported\nmore")

    monkeypatch.setattr(torch, "empty", refuse)
    with caplog.at_level(logging.WARNING, "chatterbox_vllm"):
        spare_device_memory("cuda")
    assert set_to == ["expandable_segments:True", "expandable_segments:False"]
    assert "operation not supported)" in caplog.text and "update the driver" in caplog.text


def test_a_full_card_is_no_matter_of_the_driver(set_to: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):
        spare_device_memory("cuda")
    assert set_to == ["expandable_segments:True"]
