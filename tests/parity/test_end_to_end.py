"""Text and clip to waveform, with the oracle's draws and noise, before and after the watermark."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm import ChatterboxTTS, ChatterboxVC, SpeechParameters, SpeechRequest, Voice
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.text.normalize import normalize_punctuation
from chatterbox_vllm.text.tokenizer import BpeTokenizer
from chatterbox_vllm.voices.hearing import Target

from ..reasons import NO_TOKENIZER
from .conftest import Goldens, Parity, find_published_tokenizer
from .oracle import weights_recipe as recipe

WAVEFORM_BOUND = 5e-3


def oracle_noise(tts: ChatterboxTTS | ChatterboxVC, tag: str, voice: Voice | Target, speech_tokens: int) -> S3GenNoise:
    model = tts.s3gen_stage.model
    total, generated = model.frames(speech_tokens, voice.prompt)
    phase = torch.from_numpy(recipe.uniform(f"{tag}/hift_phase_u", 9).astype(np.float32)) * 2 * math.pi - math.pi
    phase[0] = 0
    z = torch.from_numpy(recipe.noise(f"{tag}/cfm_z", 80 * total)).view(80, total)
    if model.config.flow.meanflow:
        own = 2 * speech_tokens
        z[:, -own:] = torch.from_numpy(recipe.noise(f"{tag}/mf_noise", 80 * own)).view(80, own)
    return S3GenNoise(
        z=z,
        phase=phase,
        source=torch.from_numpy(recipe.noise(f"{tag}/hift_noise", 9 * 480 * generated)).view(9, -1),
    )


@pytest.fixture
def published_ids(english: ChatterboxTTS, goldens: Goldens, parity: Parity, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes sure that a text gets the published tokenizer's ids: its own, or else those that the goldens hold."""
    encode = BpeTokenizer.encode

    def need(text: str) -> None:
        if find_published_tokenizer() is not None:
            return
        rows = goldens.json("text")["english_tokenizer"]
        known = {normalize_punctuation(row["text"]): row["ids"] for row in rows}
        if normalize_punctuation(text) not in known:
            parity.absent("text to waveform", f"{NO_TOKENIZER}, and text.json does not hold {text!r}")
        monkeypatch.setattr(BpeTokenizer, "encode", lambda own, text, *_: known.get(text) or encode(own, text))

    return need


def test_text_to_waveform(
    english: ChatterboxTTS,
    goldens: Goldens,
    parity: Parity,
    published_ids: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All cases, and somebody else, in one batch; each before its watermark and with it.

    That a batch gives what each gets alone is tested of either stage at this size.
    """
    cases, golden = goldens.json("e2e_english"), goldens.arrays("e2e_english")
    requests = []
    for case, facts in cases.items():
        arguments = dict(facts["kwargs"])
        text, clip = arguments.pop("text"), arguments.pop("audio_prompt_path", None)
        published_ids(text)
        voice = Voice.load(english.directory / "conds.pt") if clip is None else english.enrol(goldens.path(clip))
        if clip is not None:
            check_voice(voice, golden, case, parity)
        request = SpeechRequest(
            text,
            voice,
            SpeechParameters(**arguments, max_tokens=facts["eos_forced_at_step"]),
            noise=oracle_noise(english, facts["tag"], voice, facts["n_speech_tokens"]),
            uniforms=tuple(recipe.uniform(facts["uniform_key"], 2000).tolist()),
        )
        requests.append(request)
    other = SpeechRequest("Somebody else.", Voice.load(english.directory / "conds.pt"), SpeechParameters(max_tokens=8))

    raw: list[np.ndarray] = []
    watermarker = english._engine.voicing.watermarker
    mark = watermarker.apply
    monkeypatch.setattr(watermarker, "apply", lambda wave: raw.append(wave.copy()) or mark(wave))
    results = {result.index: result for result in english.run([*requests, other])}
    for index, case in enumerate(cases):
        result = results[index]
        assert result.error is None, result.error
        parity.identical(f"speech tokens end to end: {case}", result.speech_tokens, golden[f"{case}_speech_tokens"])
        (unmarked,) = (wave for wave in raw if len(wave) == len(golden[f"{case}_raw"]))
        parity.relative(f"text to waveform, in a batch: {case}", unmarked, golden[f"{case}_raw"], WAVEFORM_BOUND)
        parity.relative(
            f"text to watermarked waveform, in a batch: {case}", result.audio, golden[f"{case}_wav"], WAVEFORM_BOUND
        )


def check_voice(voice: Voice, golden: Any, case: str, parity: Parity) -> None:
    speaker = voice.conditioning
    parity.identical(f"enrolment end to end: {case} prompt", voice.prompt.tokens[None], golden[f"{case}_prompt_token"])
    parity.identical(
        f"enrolment end to end: {case} T3 prompt", speaker.speech_prompt[None], golden[f"{case}_t3_prompt"]
    )
    values = {
        "xvector": voice.prompt.xvector[None],
        "speaker_emb": speaker.speaker_embedding,
        "prompt_feat_head": voice.prompt.mel[:10],
    }
    for name, value in values.items():
        parity.relative(f"enrolment embeddings end to end: {case} {name}", value, golden[f"{case}_{name}"], 1e-4)
    assert [1, *voice.prompt.mel.shape] == golden[f"{case}_prompt_feat_shape"].tolist()
