"""vLLM finds T3 by the entry point that the installed package declares."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

pytest.importorskip("vllm")


def test_entry_point_registers_the_architecture() -> None:
    (entry,) = entry_points(group="vllm.general_plugins", name="chatterbox_t3") or (None,)
    if entry is None:
        pytest.skip("chatterbox-vllm is not installed, only imported")
    entry.load()()
    from vllm import ModelRegistry

    from chatterbox_vllm.t3.vllm.model import T3ForSpeech

    assert ModelRegistry._try_load_model_cls("T3ForSpeech") is T3ForSpeech
