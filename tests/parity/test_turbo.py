"""Turbo and Nano: T3 on GPT-2 through the engine that speaks, and text and clip to waveform, against the goldens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm import ChatterboxTTS, ChatterboxTurboTTS, SpeechParameters, SpeechRequest, Voice
from chatterbox_vllm.families.turbo import NANO, TURBO
from chatterbox_vllm.t3.backbone import PromptRows
from chatterbox_vllm.text.gpt2_tokenizer import Gpt2Tokenizer
from chatterbox_vllm.text.normalize import normalize_punctuation_turbo

from .conftest import Goldens, Parity, find_turbo_tokenizer
from .oracle import weights_recipe as recipe
from .test_end_to_end import WAVEFORM_BOUND, check_voice, oracle_noise
from .test_t3 import LOGIT_STEPS, LOGITS_BOUND, Recorder, drain, recorder  # noqa: F401


@pytest.fixture(scope="module", params=[TURBO, NANO], ids=lambda family: family.name)
def tts(request: pytest.FixtureRequest) -> Iterator[ChatterboxTTS]:
    family = request.param
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count() or 1)
    directory = request.getfixturevalue(f"{family.name}_dir")
    with ChatterboxTurboTTS.from_local(
        directory, "cpu", nano=family is NANO, max_model_len=576, max_batch_size=4
    ) as model:
        yield model
    torch.set_num_threads(threads)


@pytest.fixture
def golden(tts: ChatterboxTTS, goldens: Goldens) -> Any:
    return goldens.arrays(f"t3_{tts.family.name}")


@pytest.fixture
def cases(tts: ChatterboxTTS, goldens: Goldens) -> list[dict[str, Any]]:
    return goldens.json(f"t3_{tts.family.name}")["cases"]


@pytest.fixture
def builder(tts: ChatterboxTTS) -> PromptRows:
    return tts._engine.scheduler.preparation.prompts.builder


def prompt_of(case: dict[str, Any], builder: PromptRows, golden: Any) -> torch.Tensor:
    speaker, clip = (torch.from_numpy(golden[key]) for key in ("speaker_emb", "cond_prompt_speech_tokens"))
    text = case["key"].split("_")[0]
    return builder.prompt(builder.conditioning(speaker[None], clip, 0.0), golden[f"{text}_text_tokens"][0].tolist())


def add(tts: ChatterboxTTS, case: dict[str, Any], prompt: torch.Tensor, max_tokens: int) -> None:
    greedy = case["kind"] == "greedy"
    given = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} if greedy else {}
    if greedy:
        assert case["params"] == {**given, "temperature": 1.0}  # the oracle takes the likeliest of what that gives
    family, parameters = tts.family, SpeechParameters(max_tokens=max_tokens, **given)
    uniforms = None if greedy else recipe.uniform(case["uniform_key"], 2000).tolist()
    sampling = parameters.resolved(family.defaults, family.absent).sampling
    tts.t3_stage.add(case["key"], prompt, sampling, seed=0, uniforms=uniforms)


def test_prompt(
    tts: ChatterboxTTS, builder: PromptRows, golden: Any, cases: list[dict[str, Any]], parity: Parity
) -> None:
    row, config = f"T3 prompt, {tts.family.name}", tts.family.config.t3
    for case in cases:
        prompt, text = prompt_of(case, builder, golden), case["key"].split("_")[0]
        assert (
            len(prompt)
            == case["prefill_len"]
            == builder.prompt_length(golden[f"{text}_text_tokens"].shape[1], config.speech_prompt_tokens)
        )
        if f"{text}_embeds_tail6" in golden:
            assert list(prompt[None].shape) == golden[f"{text}_embeds_shape"].tolist()
            parity.relative(f"{row}: {text}", prompt[None, -6:], golden[f"{text}_embeds_tail6"], 1e-4)
    # The golden holds the first rows and the last.
    conditioning, kept = prompt[: golden["cond_emb_shape"][0]], golden["cond_emb"]
    half = len(kept) // 2
    parity.relative(f"{row}: conditioning", torch.cat([conditioning[:half], conditioning[-half:]]), kept, 1e-4)


def test_logits(
    tts: ChatterboxTTS,
    builder: PromptRows,
    golden: Any,
    cases: list[dict[str, Any]],
    parity: Parity,
    recorder: Recorder,  # noqa: F811
) -> None:
    name = tts.family.name
    for case in cases:
        key = case["key"]
        recorder.__init__()
        add(tts, case, prompt_of(case, builder, golden), LOGIT_STEPS)
        tokens = drain(tts.t3_stage)[key]
        parity.identical(
            f"T3 {case['kind']} tokens, alone, {name}: {key}", tokens, golden[f"{key}_tokens"][:LOGIT_STEPS]
        )
        if case["kind"] == "greedy":
            parity.absolute(f"T3 logits, {name}: {key}", recorder.guided, golden[f"{key}_logits3"], LOGITS_BOUND)
            continue
        for step in range(LOGIT_STEPS):
            ids, found = golden[f"{key}_probs{step}_ids"], recorder.before_draw[step]
            parity.identical(f"T3 kept ids, {name}: {key} step {step}", np.flatnonzero(found), np.sort(ids))
            likely = golden[f"{key}_probs{step}_vals"]
            parity.absolute(f"T3 probabilities, {name}: {key} step {step}", found[ids], likely, LOGITS_BOUND)


def test_in_one_batch(
    tts: ChatterboxTTS,
    builder: PromptRows,
    golden: Any,
    cases: list[dict[str, Any]],
    parity: Parity,
    recorder: Recorder,  # noqa: F811
) -> None:
    for case in cases:
        add(tts, case, prompt_of(case, builder, golden), case["n"])
    tokens = drain(tts.t3_stage)
    for case in cases:
        key = case["key"]
        parity.identical(
            f"T3 {case['kind']} tokens, one batch, {tts.family.name}: {key}", tokens[key], golden[f"{key}_tokens"]
        )


@pytest.fixture
def published_ids(tts: ChatterboxTTS, goldens: Goldens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes sure that a text gets the published tokenizer's ids: its own, or else those that the goldens hold."""
    if find_turbo_tokenizer() is None:
        rows = goldens.json("text")["turbo_tokenizer"]["cases"]
        known = {normalize_punctuation_turbo(row["text"]): row["ids"] for row in rows}
        monkeypatch.setattr(Gpt2Tokenizer, "encode", lambda own, text, *_: known[text])


@pytest.mark.usefixtures("published_ids")
def test_text_to_waveform(
    tts: ChatterboxTTS, goldens: Goldens, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cases in one batch; each before its watermark and with it."""
    name = tts.family.name
    facts, golden = goldens.json(f"e2e_{name}"), goldens.arrays(f"e2e_{name}")
    silence = tts.family.ending.appended
    requests = []
    for case, about in facts.items():
        arguments = dict(about["kwargs"])
        text, clip = arguments.pop("text"), arguments.pop("audio_prompt_path", None)
        voice = tts.voice if clip is None else tts.enrol(goldens.path(clip))
        if clip is not None:
            check_voice(voice, golden, case, parity)
        requests.append(
            SpeechRequest(
                text,
                voice,
                SpeechParameters(**arguments, max_tokens=about["eos_forced_at_step"]),
                noise=oracle_noise(tts, about["tag"], voice, about["n_speech_tokens"]),
                uniforms=tuple(recipe.uniform(about["uniform_key"], 2000).tolist()),
            )
        )
    raw: list[np.ndarray] = []
    watermarker = tts._engine.voicing.watermarker
    mark = watermarker.apply
    monkeypatch.setattr(watermarker, "apply", lambda wave: raw.append(wave.copy()) or mark(wave))
    results = {result.index: result for result in tts.run(requests)}
    for index, case in enumerate(facts):
        result, row = results[index], f"text to waveform, {name}: {case}"
        assert result.error is None, result.error
        spoken = (*result.speech_tokens, *silence)
        parity.identical(f"speech tokens end to end, {name}: {case}", spoken, golden[f"{case}_speech_tokens"])
        (unmarked,) = (wave for wave in raw if len(wave) == len(golden[f"{case}_raw"]))
        parity.relative(row, unmarked, golden[f"{case}_raw"], WAVEFORM_BOUND)
        parity.relative(
            row.replace("to wave", "to watermarked wave"), result.audio, golden[f"{case}_wav"], WAVEFORM_BOUND
        )


def test_the_built_in_voice_is_of_the_models_kind(tts: ChatterboxTTS) -> None:
    """Its published file does not say so."""
    assert Voice.unchecked(tts.directory / "conds.pt").recipe == "turbo" and tts.voice.kind == tts.voice_kind
