"""T3 against the goldens, through the same vLLM engine that speaks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm import ChatterboxTTS
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.t3 import sampling
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.vllm.stage import T3Stage

from .conftest import Goldens, Parity
from .oracle import weights_recipe as recipe

LOGITS_BOUND = 1e-3
LOGIT_STEPS = 3


@pytest.fixture(scope="module")
def golden(goldens: Goldens) -> Any:
    return goldens.arrays("t3_english")


@pytest.fixture(scope="module")
def cases(goldens: Goldens) -> list[dict[str, Any]]:
    return goldens.json("t3_english")["cases"]


@pytest.fixture(scope="module")
def builder(english: ChatterboxTTS) -> PromptBuilder:
    return english._engine.scheduler.preparation.prompts.builder


@pytest.fixture(scope="module")
def talker(english: ChatterboxTTS) -> T3Stage:
    return english.t3_stage


@pytest.fixture(scope="module")
def to_the_end() -> bool:
    """Whether some cases are spoken to their end alone as well, and not in one batch only."""
    return True


def prompt_of(case: dict[str, Any], builder: PromptBuilder, golden: Any) -> torch.Tensor:
    speaker = torch.from_numpy(golden["speaker_emb"])[None]
    conditioning = builder.conditioning(
        speaker, torch.from_numpy(golden["cond_prompt_speech_tokens"]), case["exaggeration"]
    )
    ids = golden[case["key"].split("_")[0] + "_text_tokens"][0].tolist()
    assert (ids[0], ids[-1]) == (builder.config.start_text_token, builder.config.stop_text_token)
    return builder.prompt(conditioning, ids[1:-1])


def add(talker: T3Stage, case: dict[str, Any], prompt: torch.Tensor, max_tokens: int, **more: Any) -> None:
    greedy, given = case["kind"] == "greedy", case["params"]
    parameters = SpeechParameters(
        exaggeration=case["exaggeration"],
        cfg_weight=case["cfg_weight"],
        temperature=0.0 if greedy else given["temperature"],
        min_p=given["min_p"],
        top_p=given["top_p"],
        repetition_penalty=given["repetition_penalty"],
        max_tokens=max_tokens,
    )
    uniforms = None if greedy else recipe.uniform(case["uniform_key"], 2000).tolist()
    talker.add(case["key"], prompt, parameters.resolved(ENGLISH.defaults).sampling, seed=0, uniforms=uniforms, **more)


def drain(talker: T3Stage) -> dict[str, list[int]]:
    tokens = {}
    while talker.unfinished:
        tokens.update({output.request_id: list(output.token_ids) for output in talker.step()})
    return tokens


def test_conditioning(builder: PromptBuilder, golden: Any, cases: list[dict[str, Any]], parity: Parity) -> None:
    speaker = torch.from_numpy(golden["speaker_emb"])[None]
    prompt_tokens = torch.from_numpy(golden["cond_prompt_speech_tokens"])
    first = cases[0]["exaggeration"]
    parity.relative(
        "T3 conditioning: all rows", builder.conditioning(speaker, prompt_tokens, first), golden["cond_emb"], 1e-4
    )
    for key in golden:
        if key.startswith("cond_emb_exag"):
            exaggeration = float(key.removeprefix("cond_emb_exag").removesuffix("_last"))
            emotion = builder.conditioning(speaker, prompt_tokens, exaggeration)[-1]
            parity.relative(f"T3 conditioning: exaggeration {exaggeration}", emotion, golden[key], 1e-4)


def test_prompt(builder: PromptBuilder, golden: Any, cases: list[dict[str, Any]], parity: Parity) -> None:
    for case in cases:
        text = case["key"].split("_")[0]
        prompt = prompt_of(case, builder, golden)
        assert prompt.shape[0] == case["prefill_len"]
        if f"{text}_embeds_tail6" in golden:
            # The published function stops before the second start-of-speech.
            streams = torch.stack(prompt[:-1].chunk(2, dim=-1))
            assert list(streams.shape) == golden[f"{text}_embeds_shape"].tolist()
            parity.relative(f"T3 prompt: {text}", streams[:, -6:], golden[f"{text}_embeds_tail6"], 1e-4)


class Recorder:
    """What the sampler saw, step by step, of requests that run alone."""

    def __init__(self) -> None:
        self.streams: list[np.ndarray] = []
        self.guided: list[np.ndarray] = []
        self.before_draw: list[np.ndarray] = []


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    seen = Recorder()
    guided, draw = sampling.guided, sampling.draw

    def recording_guided(logits: torch.Tensor, weight: torch.Tensor, vocabulary: int) -> torch.Tensor:
        seen.streams.append(logits[0].numpy().copy())
        out = guided(logits, weight, vocabulary)
        seen.guided.append(out[0].numpy().copy())
        return out

    def recording_draw(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        seen.before_draw.append(logits[0].softmax(-1).numpy().copy())
        return draw(logits, u)

    monkeypatch.setattr(sampling, "guided", recording_guided)
    monkeypatch.setattr(sampling, "draw", recording_draw)
    yield seen


def test_alone(
    talker: T3Stage,
    builder: PromptBuilder,
    golden: Any,
    cases: list[dict[str, Any]],
    parity: Parity,
    recorder: Recorder,
    to_the_end: bool,
) -> None:
    whole: set[tuple[str, float]] = set()
    for case in cases:
        key = case["key"]
        recorder.__init__()
        # Every case shows its first logits; the first of each kind and guidance weight goes on to its end.
        sort = (case["kind"], case["cfg_weight"])
        steps = case["n"] if to_the_end and sort not in whole else LOGIT_STEPS
        whole.add(sort)
        add(talker, case, prompt_of(case, builder, golden), steps)
        tokens = drain(talker)[key]
        parity.identical(f"T3 {case['kind']} tokens, alone: {key}", tokens, golden[f"{key}_tokens"][:steps])
        text = key.split("_")[0]
        if f"{text}_prefill_cond_logits" in golden:
            conditional, unconditional = np.split(recorder.streams[0], 2)
            parity.absolute(f"T3 logits: {key} cond", conditional, golden[f"{text}_prefill_cond_logits"], LOGITS_BOUND)
            parity.absolute(
                f"T3 logits: {key} uncond", unconditional, golden[f"{text}_prefill_uncond_logits"], LOGITS_BOUND
            )
        if case["kind"] == "greedy":
            parity.absolute(f"T3 logits: {key}", recorder.guided[:LOGIT_STEPS], golden[f"{key}_logits3"], LOGITS_BOUND)
            best = np.sort(np.stack(recorder.guided), axis=-1)[:, -2:]
            # A margin is the difference of two logits.
            parity.absolute(
                "T3 margins: " + key, best[:, 1] - best[:, 0], golden[f"{key}_margin"][:steps], 2 * LOGITS_BOUND
            )
        else:
            for step in range(LOGIT_STEPS):
                ids = golden[f"{key}_probs{step}_ids"]
                parity.identical(
                    f"T3 kept ids: {key} step {step}", np.flatnonzero(recorder.before_draw[step]), np.sort(ids)
                )
                parity.absolute(
                    f"T3 probabilities: {key} step {step}",
                    recorder.before_draw[step][ids],
                    golden[f"{key}_probs{step}_vals"],
                    LOGITS_BOUND,
                )
            kept = [np.count_nonzero(p) for p in recorder.before_draw]
            parity.identical(f"T3 kept ids: {key} counts", kept, golden[f"{key}_nnz"][:steps])


def test_in_one_batch(
    talker: T3Stage, builder: PromptBuilder, golden: Any, cases: list[dict[str, Any]], parity: Parity
) -> None:
    for case in cases:
        add(talker, case, prompt_of(case, builder, golden), case["n"])
    tokens = drain(talker)
    for case in cases:
        key = case["key"]
        parity.identical(f"T3 {case['kind']} tokens, one batch: {key}", tokens[key], golden[f"{key}_tokens"])
