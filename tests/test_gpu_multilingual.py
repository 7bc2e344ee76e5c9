"""The multilingual model on a CUDA GPU, its text followed under CUDA graphs. `-m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from chatterbox_vllm import ChatterboxTTS
from chatterbox_vllm.families.multilingual import TOKENIZER
from chatterbox_vllm.t3.vllm.following import FollowText

from .parity.conftest import checkpoint_dir, find_published_tokenizer, goldens  # noqa: F401 (fixtures)
from .parity.oracle.checkpoint import write_multilingual
from .parity.test_t3 import add, drain, prompt_of
from .test_following import Talk, babbler_with_heads, check  # noqa: F401 (fixture)

pytestmark = pytest.mark.gpu


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[int, torch.Tensor]]:
    """Attention by the queries and keys that the kernel reads: by the text's size, the row of each step."""
    rows_seen: dict[int, dict[int, torch.Tensor]] = {}
    apply = FollowText.apply

    def recorded(self: FollowText, logits: torch.Tensor) -> torch.Tensor:
        for row, _, prompt_rows, size, _ in self.table.tolist():
            length, newest = int(self.lengths[row]), int(self.begins.gpu[row + 1]) - 1
            weights = []
            for query, keys in zip(self.queries[newest].float(), self.keys, strict=True):
                cached = keys[self.blocks.gpu[row].long()].reshape(-1, keys.shape[-1])[:length].float()
                weights.append((cached @ query * len(query) ** -0.5).softmax(0))
            text = torch.stack(weights).mean(0)[self.fields.text_start :][:size]
            rows_seen.setdefault(size, {})[length - prompt_rows] = text.cpu()
        return apply(self, logits)

    monkeypatch.setattr(FollowText, "apply", recorded)
    return rows_seen


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
def test_attention_in_a_batch(babbler_with_heads: Path, seen: dict, dtype: torch.dtype, bound: float) -> None:  # noqa: F811
    talk = Talk(babbler_with_heads, "cuda", dtype)
    seen.clear()  # of the warm-up
    try:
        for i in range(7):
            talk.add(f"{10 + 9 * i}", 10 + 9 * i, None if i == 1 else 0, cfg_weight=i / 4, max_tokens=12 + 5 * i)
        said = talk.drain()
        assert set(seen) == {12 + 9 * i for i in range(7) if i != 1}
        for size in seen:
            check(talk, seen, size - 2, said[f"{size - 2}"], bound)
    finally:
        talk.stage.close()


def test_goldens_under_cuda_graphs(tmp_path: Path, checkpoint_dir: Path, goldens: Any) -> None:  # noqa: F811
    """With the end held back wherever attention says so, which of made-up weights is nearly always."""
    directory = write_multilingual(tmp_path / "model", checkpoint_dir, find_published_tokenizer(TOKENIZER))
    golden, cases = goldens.arrays("t3_multilingual"), goldens.json("t3_multilingual")["cases"]
    with ChatterboxTTS.from_local(
        directory, "cuda", dtype="float32", s3gen_dtype="float32", max_model_len=512, watermark=False
    ) as tts:
        builder = tts._engine.scheduler.preparation.prompts.builder
        for held_for in (None, 40):
            for case in cases:
                add(tts.t3_stage, case, prompt_of(case, builder, golden), case["n"], end_held_for=held_for)
            tokens = drain(tts.t3_stage)
            assert [c["key"] for c in cases if tokens[c["key"]] != golden[f"{c['key']}_tokens"].tolist()] == []
