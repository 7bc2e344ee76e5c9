"""What the environment says to vLLM: ours where T3 needs it, the user's elsewhere, and no contradiction in silence."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.t3.vllm import environment as runtime
from chatterbox_vllm.t3.vllm.environment import prepare_environment, require_batch_invariance


@pytest.mark.parametrize("name", runtime._REQUIRED)
def test_what_t3_cannot_run_with_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"{name}=1 is set .* unset it"):
        prepare_environment()


def test_defaults_leave_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    monkeypatch.delenv("VLLM_USE_BREAKABLE_CUDAGRAPH", raising=False)
    prepare_environment()
    assert os.environ["VLLM_NO_USAGE_STATS"] == "0"
    assert os.environ["VLLM_USE_BREAKABLE_CUDAGRAPH"] == "0"


def test_batch_invariance_needs_a_card_and_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        require_batch_invariance(torch.device("cpu"))
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    monkeypatch.setitem(runtime.sys.modules, "vllm.v1.attention.ops.triton_unified_attention", runtime)
    with pytest.raises(ConfigError, match="first model of a process"):
        require_batch_invariance(torch.device("cuda", 0))
