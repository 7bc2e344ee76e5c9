"""Attention to the text inside the engine: what is computed from the KV cache, and what becomes of speech's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler

from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.guard import Bounds
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.babble import MULTILINGUAL_BABBLE_CONFIG, build_babble
from chatterbox_vllm.families.multilingual import MULTILINGUAL
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.t3.alignment import completed_at
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.kv_cache import kv_bytes_per_position
from chatterbox_vllm.t3.llama import QKV, rotate, rotation
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.t3.vllm.following import FollowText
from chatterbox_vllm.t3.vllm.stage import T3Stage
from chatterbox_vllm.voices.voice import Voice

HEADS = ((2, 3), (1, 0), (2, 1))
BLOCK = 128  # of the cache on a CPU
SAMPLING = Sampling(
    cfg_weight=0.5, temperature=0.0, min_p=0.0, top_p=1.0, top_k=0, repetition_penalty=1.2, max_tokens=20
)


class Talk:
    """A T3 stage on a checkpoint of made-up weights, some heads of which are followed."""

    def __init__(self, directory: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, **options: Any):
        config = config_of(directory)
        self.config = config.t3
        self.weights = Weights(directory / MULTILINGUAL.t3)
        self.builder = PromptBuilder.from_weights(self.config, self.weights)
        speaker = Voice.load(directory / "conds.pt", config).conditioning
        self.conditioning = self.builder.conditioning(speaker.speaker_embedding, speaker.speech_prompt, 0.5)
        settings = {"max_model_len": 256, "max_batch_size": 4, "follow_text": True, "cuda_graphs": device == "cuda"}
        self.stage = T3Stage(self.config, self.weights, T3Options(dtype, **settings | options), resolve_device(device))

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
                    projected = (F.linear(inputs[QKV], layer[name])[0] for name in QKV[:2])
                    each = (x.unflatten(-1, (config.num_heads, -1))[:, head] for x in projected)
                    q, k = (rotate(x, cosine, sine) for x in each)
                    later = torch.ones(len(q), len(q)).triu(1).bool()
                    maps.append((q @ k.T * config.head_dim**-0.5).masked_fill(later, float("-inf")).softmax(-1))
        start, size = config.conditioning_length, letters + 2
        return torch.stack(maps).mean(0)[start + size + 1 :, start : start + size]


@pytest.fixture(scope="module")
def babbler_with_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    t3 = replace(MULTILINGUAL_BABBLE_CONFIG.t3, alignment_heads=HEADS)
    directory = tmp_path_factory.mktemp("babbler-with-heads")
    build_babble(directory, replace(MULTILINGUAL_BABBLE_CONFIG, t3=t3))
    return directory


@pytest.fixture(scope="module")
def talk(babbler_with_heads: Path) -> Iterator[Talk]:
    opened = Talk(babbler_with_heads)
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
def test_attention_of_prompts_that_come_in_parts(babbler_with_heads: Path, seen: dict, most_rows: int) -> None:
    parts = Talk(babbler_with_heads, max_batched_tokens=most_rows, max_batch_size=1 if most_rows == 1 else 4)
    try:
        for letters in (20, 33):
            parts.add(str(letters), letters, max_tokens=8)
        for name, tokens in parts.drain().items():
            check(parts, seen, int(name), tokens, 1e-5)
    finally:
        parts.stage.close()


def test_attention_of_several_steps_for_a_turn(talk: Talk, babbler_with_heads: Path, seen: dict) -> None:
    def said_by(own: Talk) -> dict[str, list[int]]:
        for letters in (15, 28, 41):
            own.add(str(letters), letters, max_tokens=letters)
        return own.drain()

    expected = said_by(talk)
    seen.clear()
    several = Talk(babbler_with_heads, multi_step=4)
    try:
        said = said_by(several)
        assert said == expected
        for name, tokens in said.items():
            check(several, seen, int(name), tokens, 1e-5)
    finally:
        several.stage.close()


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What vLLM takes out of its batch for want of room."""
    found: list[object] = []
    preempt = Scheduler._preempt_request

    def noting(self: Scheduler, request: object, *rest: object, **more: object) -> None:
        found.append(request)
        preempt(self, request, *rest, **more)

    monkeypatch.setattr(Scheduler, "_preempt_request", noting)
    return found


@pytest.fixture(scope="module")
def tight(babbler_with_heads: Path, talk: Talk) -> Iterator[Talk]:
    """With a cache of four blocks and vLLM's own, for sequences of more than a block each."""
    opened = Talk(babbler_with_heads, kv_cache_bytes=5 * BLOCK * kv_bytes_per_position(talk.config, 4))
    yield opened
    opened.stage.close()


def test_attention_after_preemption(tight: Talk, seen: dict, preempted: list) -> None:
    for letters in (72, 75, 78, 81):
        tight.add(str(letters), letters, max_tokens=110)
    said = tight.drain()
    assert len(preempted) > 1
    for letters, tokens in said.items():
        assert int(letters) + 38 + len(tokens) > BLOCK
        check(tight, seen, int(letters), tokens, 1e-5)


def test_attention_in_half_precision(babbler_with_heads: Path, seen: dict) -> None:
    half = Talk(babbler_with_heads, dtype=torch.bfloat16)
    try:
        half.add("half", 40)
        check(half, seen, 40, half.drain()["half"], 5e-3)
    finally:
        half.stage.close()


@pytest.fixture
def going(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Made-up attention in place of the heads': it goes through the text at so many text tokens a step, and stays."""

    def at(speed: float) -> None:
        def attention(self: FollowText, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            out = torch.zeros(len(rows), self.longest_text)
            for own, row, length in zip(out, rows.tolist(), lengths.tolist(), strict=True):
                request = self.requests[row]
                own[min(int((length - request.prompt_rows) * speed), request.text.size - 1)] = 0.9
            return out

        monkeypatch.setattr(FollowText, "attention", attention)

    return at


SAMPLED = {"temperature": 0.8, "min_p": 0.05, "max_tokens": 150}


@pytest.mark.parametrize("sampling", [{"max_tokens": 150}, {**SAMPLED, "cfg_weight": 0.0}, SAMPLED])
def test_the_end_is_held_back_while_the_text_is_not_said(talk: Talk, going: Callable, sampling: dict) -> None:
    """Up to the bound; who is not followed, and whose text is too short, ends where it would."""
    going(0.0)
    talk.add("alone", 30, None, **sampling)
    natural = talk.drain()["alone"]
    assert natural[-1] == talk.config.stop_speech_token and len(natural) < 40
    for name, letters, held_for in (("held", 30, 60), ("short", 3, 60), ("free", 30, None), ("not", 30, 0)):
        talk.add(name, letters, held_for, **sampling)
    said = talk.drain()
    assert said["free"] == said["not"] == natural
    assert said["held"][: len(natural) - 1] == natural[:-1] and len(said["held"]) == 61
    assert {said["held"][-1], said["short"][-1]} == {talk.config.stop_speech_token} and len(said["short"]) < 40


@pytest.mark.parametrize("sampling", [{"max_tokens": 150}, {**SAMPLED, "cfg_weight": 0.0}, SAMPLED])
def test_the_end_is_brought_about_when_the_text_has_been_said(talk: Talk, going: Callable, sampling: dict) -> None:
    """Of 14 text tokens the last is reached at step 13; at step 18 it has had 6 times 0.9."""
    going(1.0)
    for name, held_for in (("followed", 60), ("free", None)):
        talk.add(name, 12, held_for, **sampling)
    said = talk.drain()
    assert len(said["free"]) > 20 and said["followed"] == [*said["free"][:18], talk.config.stop_speech_token]


def test_where_speech_is_outlasts_preemption(
    talk: Talk, tight: Talk, going: Callable, preempted: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: dict[int, torch.Tensor] = {}  # the last, by the text's size
    apply = FollowText.apply

    def keeping(self: FollowText, logits: torch.Tensor) -> torch.Tensor:
        logits = apply(self, logits)
        states.update({own.text.size: self.states[own.slot].clone() for own in self.requests.values()})
        return logits

    monkeypatch.setattr(FollowText, "apply", keeping)
    going(1.0)
    outcomes = []
    for talker in (talk, tight):
        assert not preempted
        for letters in (60, 62, 64, 66):
            talker.add(str(letters), letters, 110, max_tokens=100)
        outcomes.append((talker.drain(), dict(states)))
    (said, kept), (said_again, kept_again) = outcomes
    assert len(preempted) > 1 and said_again == said
    for size, state in kept.items():
        assert torch.equal(kept_again[size], state)
        assert int(completed_at(state[None])) == size - 3 + 2


def test_guard_is_the_switch(babbler_with_heads: Path, going: Callable) -> None:
    """Through all that lies between a text and the engine: the end is held back as long as it may be early."""
    going(0.0)
    text, spoken = "Guten Morgen, wie geht es Ihnen heute?", []
    for guard in (True, False):
        with ChatterboxTTS.from_local(babbler_with_heads, "cpu", max_batch_size=2, guard=guard, watermark=False) as tts:
            assert tts.t3_stage.options.follow_text == guard
            request = SpeechRequest(text, tts.voice, SpeechParameters(seed=1), language="de")
            spoken += tts.run([request])
    held, free = spoken
    assert held.finish_reason == free.finish_reason == "stop" and held.retries == 0
    assert len(held.speech_tokens) == Bounds.of(text).early > len(free.speech_tokens)
    assert held.speech_tokens[: len(free.speech_tokens)] == free.speech_tokens


def test_what_is_not_to_be_had_is_refused(babbler: Path, babbler_with_heads: Path, talk: Talk) -> None:
    config = config_of(babbler).t3
    weights, device = Weights(babbler / "t3_cfg.safetensors"), resolve_device("cpu")
    options = T3Options(torch.float32, max_model_len=128, follow_text=True, cuda_graphs=False)
    for heads in ((), ((4, 0),), ((0, 4),)):
        with pytest.raises(ConfigError, match="leave follow_text out"):
            T3Stage(replace(config, alignment_heads=heads), weights, options, device)
    with pytest.raises(ValueError, match="FollowedText"):
        FollowText.validate_params(SamplingParams(extra_args={"followed": 7}))
    plain = Talk(babbler_with_heads, follow_text=False)
    try:
        assert plain.stage.model.queries.numel() == 0  # nothing is kept
        processors = plain.stage._engine.vllm_config.model_config.logits_processors
        assert [str(name) for name in processors] == ["chatterbox_vllm.t3.vllm.sampler:SpeechSampler"]
        with pytest.raises(ConfigError, match="follow_text=True"):
            plain.add("followed", 10)
    finally:
        plain.stage.close()
