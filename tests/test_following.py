"""Attention to the text inside the engine: what is computed from the KV cache, and what becomes of the end of speech."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("vllm")

from vllm import SamplingParams

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.multilingual import MULTILINGUAL
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.kv_cache import kv_bytes_per_position
from chatterbox_vllm.t3.llama import QKV, rotate, rotation
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.t3.vllm.following import FollowedText, FollowText
from chatterbox_vllm.t3.vllm.stage import T3Stage
from chatterbox_vllm.voices.voice import Voice

HEADS = ((2, 3), (1, 0), (2, 1))
BLOCK = 128  # of the cache on a CPU
SAMPLING = Sampling(
    cfg_weight=0.5, temperature=0.0, min_p=0.0, top_p=1.0, top_k=0, repetition_penalty=1.2, max_tokens=20
)


class Talk:
    """A T3 stage on the multilingual babbling checkpoint, whose made-up weights get heads to follow."""

    def __init__(self, directory: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any):
        config = config_of(directory)
        self.config = replace(config.t3, alignment_heads=HEADS)
        self.weights = Weights(directory / MULTILINGUAL.t3)
        self.builder = PromptBuilder.from_weights(self.config, self.weights)
        speaker = Voice.load(directory / "conds.pt", config).conditioning
        self.conditioning = self.builder.conditioning(speaker.speaker_embedding, speaker.speech_prompt, 0.5)
        settings = {"max_model_len": 256, "max_batch_size": 4, "follow_text": True, "cuda_graphs": device == "cuda"}
        self.stage = T3Stage(
            self.config, self.weights, T3Options(dtype, **settings | options), resolve_device(device)
        )

    def prompt(self, letters: int) -> torch.Tensor:
        return self.builder.prompt(self.conditioning, list(range(10, 10 + letters)))

    def add(self, name: str, letters: int, held_for: int | None = 0, **sampling: Any) -> None:
        wanted = replace(SAMPLING, **sampling)
        self.stage.add(name, self.prompt(letters), wanted, seed=3, end_held_for=held_for)

    def drain(self) -> dict[str, list[int]]:
        said: dict[str, list[int]] = {}
        while self.stage.unfinished:
            said.update({output.request_id: list(output.token_ids) for output in self.stage.step()})
        return said

    def plain_attention(self, letters: int, tokens: list[int]) -> torch.Tensor:
        """From start-of-speech and from each of `tokens` to the text, by attention of whole sequences: [n + 1, S]."""
        config, plain = self.config, PlainT3(self.config, self.weights)
        x = plain.embed(self.builder, self.prompt(letters), tokens)[:1]
        cosine, sine = rotation(config, x.shape[1])
        maps: list[torch.Tensor] = []
        for index, layer in enumerate(plain.layers()):
            inputs: dict[tuple[str, ...], torch.Tensor] = {}
            x = plain.run_layer(layer, x, lambda names, value, inputs=inputs: inputs.setdefault(names, value))
            for at, head in HEADS:
                if at == index:
                    q, k = (
                        rotate(F.linear(inputs[QKV], layer[name])[0].unflatten(-1, (config.num_heads, -1))[:, head], cosine, sine)
                        for name in QKV[:2]
                    )
                    later = torch.ones(len(q), len(q)).triu(1).bool()
                    maps.append((q @ k.T * config.head_dim**-0.5).masked_fill(later, float("-inf")).softmax(-1))
        start, size = config.conditioning_length, letters + 2
        return torch.stack(maps).mean(0)[start + size + 1 :, start : start + size]


@pytest.fixture(scope="module")
def talk(multilingual_babbler: Path) -> Iterator[Talk]:
    opened = Talk(multilingual_babbler)
    yield opened
    opened.stage.close()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[int, torch.Tensor]]:
    """What the engine computes: by the text's size, the row of each step. A step that comes again takes its place."""
    rows_seen: dict[int, dict[int, torch.Tensor]] = {}
    compute = FollowText.attention

    def recorded(self: FollowText, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        attention = compute(self, rows, lengths)
        for own, row, length in zip(attention, rows.tolist(), lengths.tolist(), strict=True):
            request = self.requests[row]
            size = request.text.size
            rows_seen.setdefault(size, {})[length - request.prompt_rows] = own[:size].float().cpu().clone()
        return attention

    monkeypatch.setattr(FollowText, "attention", recorded)
    return rows_seen


def check(talk: Talk, seen: dict[int, dict[int, torch.Tensor]], letters: int, tokens: list[int], atol: float) -> None:
    wanted = talk.plain_attention(letters, tokens[:-1])
    steps = seen[letters + 2]
    got = torch.stack([steps[step] for step in range(len(tokens))])
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)
    assert wanted.std() > 1e-3  # attention that is worth a comparison


def test_attention_of_one_request(talk: Talk, seen: dict) -> None:
    talk.add("one", 30)
    check(talk, seen, 30, talk.drain()["one"], 1e-5)


def test_attention_in_a_batch(talk: Talk, seen: dict) -> None:
    """Of other lengths and guidance, beside requests that nobody follows, more than there are places."""
    letters = {f"{i}": 10 + 9 * i for i in range(7)}
    for i, (name, count) in enumerate(letters.items()):
        followed = i % 3 != 1
        talk.add(name, count, 0 if followed else None, cfg_weight=i / 4, max_tokens=12 + 5 * i)
    said = talk.drain()
    assert set(seen) == {count + 2 for i, count in enumerate(letters.values()) if i % 3 != 1}
    for size in seen:
        check(talk, seen, size - 2, said[f"{(size - 12) // 9}"], 1e-5)


@pytest.mark.parametrize("most_rows", [7, 1])
def test_attention_of_prompts_that_come_in_parts(multilingual_babbler: Path, seen: dict, most_rows: int) -> None:
    parts = Talk(multilingual_babbler, max_batched_tokens=most_rows, max_batch_size=1 if most_rows == 1 else 4)
    try:
        for letters in (20, 33):
            parts.add(str(letters), letters, max_tokens=8)
        for name, tokens in parts.drain().items():
            check(parts, seen, int(name), tokens, 1e-5)
    finally:
        parts.stage.close()


def test_attention_and_state_after_preemption(multilingual_babbler: Path, seen: dict) -> None:
    """Four sequences that outgrow a block each, in a cache of four blocks and vLLM's own."""
    config = config_of(multilingual_babbler).t3
    states: dict[str, dict[int, torch.Tensor]] = {}
    tight = {"kv_cache_bytes": 5 * BLOCK * kv_bytes_per_position(config, 4)}
    talkers = {"roomy": Talk(multilingual_babbler), "tight": Talk(multilingual_babbler, **tight)}
    said = {}
    preempted = 0
    for name, talk in talkers.items():
        scheduler = talk.stage._engine.engine_core.engine_core.scheduler
        begin = FollowText.update_state
        texts = {}
        for letters in (40, 45, 50, 55):
            talk.add(str(letters), letters, max_tokens=110)
        (runner,) = talk.stage._engine.collective_rpc(lambda worker: worker.model_runner)
        (follower,) = (p for p in runner.input_batch.logitsprocs.all if isinstance(p, FollowText))
        said[name] = {}
        while talk.stage.unfinished:
            for output in talk.stage.step():
                said[name][output.request_id] = list(output.token_ids)
            for request in follower.requests.values():
                texts[request.text.size] = request.text
        preempted += name == "tight" and scheduler is not None
        states[name] = {size: text.state for size, text in texts.items()}
        del begin
    assert said["tight"] == said["roomy"]
    for size, state in states["roomy"].items():
        torch.testing.assert_close(states["tight"][size], state, atol=1e-4, rtol=1e-4)
    for letters, tokens in said["tight"].items():
        check(talkers["tight"], seen, int(letters), tokens, 1e-5)
    for talk in talkers.values():
        talk.stage.close()
