"""On how many threads T3's steps run, and that PyTorch has its own back afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import get_num_threads, set_num_threads  # before an engine starts, see t3/threads.py

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.families.small import small_directory
from chatterbox_vllm.t3.threads import has_small_layers, on_one_thread, threads_of_steps


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(3)
    yield
    set_num_threads(before)


def test_only_the_small_model_has_small_layers() -> None:
    assert has_small_layers(config_of(small_directory()).t3)
    assert not has_small_layers(T3Config())


def test_one_thread_within_and_all_of_them_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # as vLLM does when it starts on a CPU
    with pytest.raises(ValueError, match="torn"), on_one_thread(True):
        assert get_num_threads() == 1
        raise ValueError("torn from its work")
    assert get_num_threads() == 3


def test_nothing_changes_where_it_is_not_wanted() -> None:
    with on_one_thread(False):
        assert get_num_threads() == 3


@pytest.mark.parametrize("device, threads", [("cpu", 3), ("cuda", 1)])
def test_the_published_model_on_a_cpu_takes_all_threads_and_on_a_card_one(device: str, threads: int) -> None:
    with threads_of_steps(T3Config(), torch.device(device))():
        assert get_num_threads() == threads
    assert get_num_threads() == 3
