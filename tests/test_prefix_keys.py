"""What vLLM's prefix cache knows blocks of prompts by."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chatterbox_vllm.t3.options import SharedPrefix

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of the blocks of 16 rows of a prompt, as vLLM asks for them."""
    from chatterbox_vllm.t3.vllm.environment import prepare_environment
    from chatterbox_vllm.t3.vllm.prefix_keys import PREFIX, name_prefixes

    prepare_environment()
    from vllm.v1.core import kv_cache_utils

    monkeypatch.setattr(kv_cache_utils, "_gen_prompt_embeds_extra_hash_keys", hashed_by_vllm(kv_cache_utils))
    name_prefixes()
    once = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    name_prefixes()
    assert kv_cache_utils._gen_prompt_embeds_extra_hash_keys is once

    def of(prompt: torch.Tensor, shared_prefix: SharedPrefix | None) -> list[Any]:
        request = SimpleNamespace(
            prompt_embeds=prompt,
            _prompt_embeds_per_block_hashes={},
            sampling_params=SimpleNamespace(extra_args={PREFIX: shared_prefix}),
            mm_features=[],
            lora_request=None,
            cache_salt=None,
        )
        blocks = range(0, len(prompt) - 15, 16)
        return [kv_cache_utils.generate_block_hash_extra_keys(request, at, at + 16, 0)[0] for at in blocks]

    return of


def hashed_by_vllm(kv_cache_utils: Any) -> Any:
    found = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    return getattr(found, "hashed", found)


def test_prompts_of_one_voice_begin_alike_and_go_on_by_what_is_in_them(keys: Any) -> None:
    voice, texts = torch.randn(40, 8), torch.randn(2, 40, 8)
    one, other = (keys(torch.cat([voice, text]), SharedPrefix("a voice", 40)) for text in texts)
    assert one[:2] == other[:2] and one[0] != one[1]
    assert all(mine != theirs for mine, theirs in zip(one[2:], other[2:], strict=True)), "a block is in both"


def test_another_voice_begins_otherwise_whatever_the_text(keys: Any) -> None:
    text = torch.randn(40, 8)
    one, other = (keys(torch.cat([torch.randn(32, 8), text]), SharedPrefix(name, 32)) for name in ("one", "other"))
    assert one[0] != other[0] and one[1] != other[1] and one[2:] == other[2:]


def test_without_a_name_rows_are_known_by_what_is_in_them(keys: Any) -> None:
    prompt = torch.randn(48, 8)
    assert keys(prompt, None) == keys(prompt.clone(), None) != keys(prompt + 1, None)
