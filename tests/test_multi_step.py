"""Several decode steps for a turn of vLLM's scheduler: the tokens are those of one step at a time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from vllm import SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from chatterbox_vllm import ChatterboxTTS, ConfigError, SpeechParameters, SpeechRequest
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.setup.planning import Settings
from chatterbox_vllm.t3.options import T3Options, T3Output
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.t3.vllm.multi_step import MultiStep
from chatterbox_vllm.t3.vllm.stage import T3Stage

LONGEST = 150
CPU = torch.device("cpu")


def say(directory: Path, multi_step: int, kv_cache_bytes: int | None = None) -> tuple[dict[str, T3Output], int]:
    """What nine requests of all kinds and a late one say, by name, and how many turns it took."""
    config = config_of(directory)
    # The made-up weights end speech that is none of theirs at once: what ends it here is drawn as seldom as any token.
    t3 = replace(config.t3, stop_speech_token=5000)
    options = T3Options(torch.float32, LONGEST, max_batch_size=9, kv_cache_bytes=kv_cache_bytes, multi_step=multi_step)
    stage = T3Stage(t3, Weights(directory / family_of(config.family).t3), options, CPU)
    generator = torch.Generator().manual_seed(1)

    def add(name: str, rows: int, sampling: Sampling, uniforms: list[float] | None = None) -> None:
        width = t3.guidance_streams * t3.hidden_size
        prompt = 0.02 * torch.randn(rows, width, generator=generator)
        stage.add(name, prompt, sampling, seed=rows, uniforms=uniforms)

    try:
        for i in range(9):
            # The eighth fills its sequence to the last place.
            limit = LONGEST - 19 if i == 7 else 20 + 13 * i
            given = None if i != 4 else torch.rand(limit, generator=generator).tolist()
            add(f"{i}", 12 + i, Sampling(i % 3 / 2, 30.0 + i, 0.0, 1.0 - i % 2 / 10, 0, 1.2, limit), given)
        said: dict[str, T3Output] = {}
        turns = 0
        while stage.unfinished:
            turns += 1
            said |= {output.request_id: output for output in stage.step()}
            if turns == 3:
                add("late", 15, Sampling(0.5, 30.0, 0.0, 1.0, 0, 1.2, 40))
        assert stage.kv_blocks_in_use == 0
    finally:
        stage.close()
    return said, turns


@pytest.mark.parametrize("kind", ["babbler", "turbo_babbler"])
def test_tokens_are_those_of_one_step_at_a_time(kind: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(kind)
    expected, turns = say(directory, 1)
    assert len(expected) == 10 and {output.finish_reason for output in expected.values()} >= {"length"}
    said, fewer = say(directory, 8)
    assert said == expected and fewer <= turns / 8 + 12
    # With room for a few sequences at once, so that some are put off and computed again.
    config = config_of(directory).t3
    position = (
        2 * torch.float32.itemsize * config.guidance_streams * config.num_layers * config.num_heads * config.head_dim
    )
    said, _ = say(directory, 3, 3 * LONGEST * position)
    assert said == expected


def test_a_turn_that_yields_is_one_step(babbler: Path) -> None:
    config = config_of(babbler)
    options = T3Options(torch.float32, LONGEST, max_batch_size=2, multi_step=8)
    stage = T3Stage(config.t3, Weights(babbler / family_of(config.family).t3), options, CPU)
    asked: list[int] = []

    def should_yield(after: int) -> bool:
        asked.append(1)
        return len(asked) > after

    def turns(after: int) -> int:
        asked.clear()
        sampling = Sampling(0.5, 0.0, 0.0, 1.0, 0, 1.0, 25)
        stage.add("one", torch.zeros(12, config.t3.guidance_streams * config.t3.hidden_size), sampling, seed=1)
        count = 0
        while stage.unfinished:
            count += 1
            (*_, last) = stage.step(lambda: should_yield(after)) or (None,)
        assert last is not None and len(last.token_ids) == 25
        return count

    try:
        assert turns(after=1000) <= 5  # the prompt's, and 24 tokens
        assert turns(after=0) == 25
        assert turns(after=3) > 20
    finally:
        stage.close()


def test_a_turn_ends_where_tokens_are_told(babbler: Path) -> None:
    config = config_of(babbler)
    options = T3Options(torch.float32, LONGEST, max_batch_size=2, multi_step=9)
    endless = replace(config.t3, stop_speech_token=5000)
    stage = T3Stage(endless, Weights(babbler / family_of(config.family).t3), options, CPU)

    def add(name: str, limit: int) -> None:
        prompt = torch.zeros(12, config.t3.guidance_streams * config.t3.hidden_size)
        stage.add(name, prompt, Sampling(0.5, 0.0, 0.0, 1.0, 0, 1.0, limit), seed=1, told_every=6, awaited=61)

    try:
        add("alone", 25)
        assert [[len(told.token_ids) for told in stage.step()] for _ in range(5)] == [[1], [6], [6], [6], [6]]
        add("early", 61)
        told: dict[str, list[int]] = {"early": [], "late": []}
        for turn in itertools.count():
            for output in stage.step():
                told[output.request_id].append(len(output.token_ids))
            if turn == 1:
                add("late", 61)
            if not stage.unfinished:
                break
        assert {name: sum(own) for name, own in told.items()} == {"early": 61, "late": 61}
        assert all(set(own[1:-1]) <= {6, 7, 8, 9} for own in told.values()), told
        assert turn < 40
        # Somebody waits for the first tokens alone.
        prompt = torch.zeros(12, config.t3.guidance_streams * config.t3.hidden_size)
        stage.add("first", prompt, Sampling(0.5, 0.0, 0.0, 1.0, 0, 1.0, 25), seed=1, told_every=6, awaited=7)
        assert [[len(told.token_ids) for told in stage.step()] for _ in range(4)] == [[1], [6], [9], [9]]
    finally:
        stage.close()


def test_a_request_ends_where_vllm_would_end_it() -> None:
    """Of tokens that are given to it together, all lists with a stop, a limit, or the end of the sequence in them."""
    scheduler = SimpleNamespace(max_model_len=20)
    ours = MultiStep.__new__(MultiStep)
    ours._scheduler, ours._append = scheduler, partial(Scheduler._update_request_with_output, scheduler)

    def asked(limit: int, prompt: int) -> Request:
        params = SamplingParams(max_tokens=limit, stop_token_ids=[7], detokenize=False)
        return Request("one", [1] * prompt, params, None)

    def state(request: Request) -> tuple:
        return list(request.output_token_ids), request.num_tokens, request.status, request.stop_reason

    for limit, prompt, drawn in itertools.product((1, 4, 6, 9), (11, 15, 17), itertools.product((3, 7), repeat=5)):
        by_one, together = asked(limit, prompt), asked(limit, prompt)
        for tokens in ([3], [*drawn]):
            if not by_one.is_finished():
                assert ours._appending(together, [*tokens]) == ours._append(by_one, [*tokens])
                assert state(together) == state(by_one)


def test_how_many_where_nobody_says(babbler: Path, flash_babbler: Path) -> None:
    def steps(directory: Path, device: str, **more: bool) -> int:
        plain = Settings(directory, torch.device(device), None, torch.float32, False, False, False)
        return replace(plain, **more).t3_multi_step

    assert steps(babbler, "cuda") == 18 and steps(babbler, "cpu") == 1
    assert steps(babbler, "cuda", deterministic=True) == steps(babbler, "cuda", teacher_forcing=True) == 1
    assert steps(flash_babbler, "cuda") == 1 and steps(babbler, "cpu", multi_step=3) == 3


def test_speech_is_the_same_through_the_engine(babbler: Path) -> None:
    requests = [SpeechParameters(seed=i, max_tokens=60) for i in range(3)]
    texts = ["One of three.", "A second one, which is longer than the first.", "Three."]
    said = []
    for steps in (1, 6):
        with ChatterboxTTS.from_local(babbler, "cpu", multi_step=steps, watermark=False) as tts:
            assert tts.settings["multi-step"] == steps
            asked = [SpeechRequest(text, tts.voice, own) for text, own in zip(texts, requests, strict=True)]
            results = sorted(tts.run(asked), key=lambda result: result.index)
            *chunks, last = tts.stream(asked[1])
            assert len(chunks) > 1 and last.speech_tokens == results[1].speech_tokens
            said.append([(result.speech_tokens, result.finish_reason) for result in results])
    assert said[0] == said[1]


def test_what_it_cannot_be_is_refused(flash_babbler: Path, babbler: Path) -> None:
    for wrong in (0, True, 2.0):
        with pytest.raises(ConfigError, match="multi_step must be a positive integer"):
            T3Options(torch.float32, multi_step=wrong)
    with pytest.raises(ConfigError, match="leave multi_step at 1 with teacher_forcing"):
        T3Options(torch.float32, multi_step=2, teacher_forcing=True)
    with pytest.raises(ConfigError, match="multi_step=4 is not to be had of a model that fills in blocks"):
        ChatterboxTTS.from_local(flash_babbler, "cpu", multi_step=4)
