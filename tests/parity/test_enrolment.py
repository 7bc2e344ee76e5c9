"""Reference audio to conditioning values, every array of `ref.npz` against the published implementation."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatterbox_vllm.audio.decode import decode_audio
from chatterbox_vllm.audio.features import kaldi_fbank, prompt_mel, trim_silence, voice_encoder_mel
from chatterbox_vllm.audio.resample import resample, sinc_resample
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.voices.enrolment import VoiceEnroller

from .conftest import HERE, Goldens, Parity

# An excerpt called "head" of a wave starts 0.2 s into it.
HEAD_SECONDS = 0.2

# Suffix of a golden's key -> row of the table, how it is compared, bound. Shapes and counts are listed apart.
STAGES: dict[str, tuple[str, str, float]] = {
    "wav24": ("soxr to 24 kHz", "absolute", 1e-5),
    "wav16": ("soxr 24 to 16 kHz", "absolute", 1e-5),
    "ta16": ("windowed sinc 24 to 16 kHz", "absolute", 1e-5),
    "ve_trim": ("voice encoder trim", "identical", 0),
    "ve_mel": ("voice encoder mel", "relative", 1e-4),
    "ve_embed": ("voice encoder embedding", "relative", 1e-4),
    "s3mel": ("S3 log mel", "relative", 1e-4),
    "fsq_hidden_en4": ("S3 encoder", "relative", 1e-4),
    "fsq_pre_tanh_en20": ("S3 code before tanh", "relative", 1e-4),
    "t3prompt_en": ("S3 speech tokens", "identical", 0),
    "t3prompt_turbo": ("S3 speech tokens", "identical", 0),
    "prompt_token_untrimmed": ("S3 speech tokens", "identical", 0),
    "prompt_token": ("S3 speech tokens", "identical", 0),
    "t3prompt_en_margin": ("S3 rounding margin", "absolute", 1e-4),
    "t3prompt_turbo_margin": ("S3 rounding margin", "absolute", 1e-4),
    "prompt_token_margin": ("S3 rounding margin", "absolute", 1e-4),
    "fbank": ("filterbank of the x-vector", "relative", 1e-4),
    "xvector": ("x-vector", "relative", 1e-4),
    "prompt_feat": ("prompt mel", "relative", 1e-4),
}
COUNTS = ("wav24_len", "wav16_len", "ta16_len", "prompt_token_len", "ve_mel_dtype")
COUNTS += ("ve_mel_shape", "s3mel_shape", "fbank_shape", "prompt_feat_shape")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each clip of `ref.json`, and one for each longer clip made of those."""
    goldens = Goldens(metafunc.config.getoption("--goldens") or HERE / "goldens")
    cases = goldens.json("ref") if (goldens.directory / "ref.json").exists() else {}
    for argument, field in (("clip", "file"), ("long_clip", "built_from")):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, [name for name, case in cases.items() if field in case])


@pytest.fixture(scope="module")
def enroller(checkpoint_dir: Path) -> VoiceEnroller:
    weights = (Weights(checkpoint_dir / file) for file in ("s3gen.safetensors", "ve.safetensors"))
    return VoiceEnroller(ModelConfig(), *weights)


def test_stages(clip: str, enroller: VoiceEnroller, goldens: Goldens, parity: Parity) -> None:
    case, arrays = goldens.json("ref")[clip], goldens.arrays("ref")
    got = analyse(enroller, *decode_audio(goldens.path(case["file"])))
    keys = [key for key in arrays if key.startswith(f"{clip}_")]
    assert keys
    for key in keys:
        suffix, golden = key.removeprefix(f"{clip}_"), arrays[key]
        if suffix in COUNTS:
            parity.identical(f"lengths and shapes: {key}", got[suffix], golden)
            continue
        name, excerpt = excerpt_of(suffix)
        stage, comparison, bound = STAGES[name]
        value = excerpt(np.asarray(got[name]), golden)
        bounds = () if comparison == "identical" else (bound,)
        getattr(parity, comparison)(f"{stage}: {key}", value, golden, *bounds)

    parity.identical(f"lengths and shapes: {clip} tokens", len(got["prompt_token_untrimmed"]), case["tokens"])
    parity.identical(f"lengths and shapes: {clip} trimmed", len(got["prompt_token"]), case["trimmed_tokens"])
    parity.identical(f"lengths and shapes: {clip} frames", len(got["prompt_feat"]), case["mel_frames"])
    least = got["prompt_token_margin"].min()
    parity.absolute(f"S3 rounding margin: {clip} least", least, case["min_fsq_margin"], 1e-4)


def test_enrolled_voice(clip: str, enroller: VoiceEnroller, goldens: Goldens, parity: Parity) -> None:
    """The whole way in one call gives the values of its stages."""
    arrays = goldens.arrays("ref")
    voice = enroller.enrol(*decode_audio(goldens.path(goldens.json("ref")[clip]["file"])))
    parity.relative(
        f"enrolled voice: speaker {clip}", voice.conditioning.speaker_embedding, arrays[f"{clip}_ve_embed"], 1e-4
    )
    parity.relative(f"enrolled voice: x-vector {clip}", voice.prompt.xvector[None], arrays[f"{clip}_xvector"], 1e-4)
    mel = arrays[f"{clip}_prompt_feat"]
    parity.relative(f"enrolled voice: prompt mel {clip}", voice.prompt.mel[: len(mel)], mel, 1e-4)
    parity.identical(
        f"enrolled voice tokens: T3 {clip}", voice.conditioning.speech_prompt, arrays[f"{clip}_t3prompt_en"]
    )
    parity.identical(f"enrolled voice tokens: flow {clip}", voice.prompt.tokens, arrays[f"{clip}_prompt_token"])
    assert voice.conditioning.speech_prompt.dtype == voice.prompt.tokens.dtype == torch.int64
    assert voice.prompt.mel.shape == tuple(arrays[f"{clip}_prompt_feat_shape"][1:])


def test_long_clip(long_clip: str, enroller: VoiceEnroller, goldens: Goldens, parity: Parity) -> None:
    cases = goldens.json("ref")
    recipe = cases[long_clip]["built_from"]
    parts = re.fullmatch(r"(\w+) clip wav16 repeated (\d+)x, cut to ([\d.]+) s", recipe)
    assert parts, f"no way known to build {recipe!r}"
    wave, rate = decode_audio(goldens.path(cases[parts[1]]["file"]))
    wave = resample(resample(wave, rate, 24_000), 24_000, 16_000)
    wave = np.tile(wave, int(parts[2]))[: round(float(parts[3]) * 16_000)]
    tokens = enroller._load().speech_tokenizer.tokens(torch.from_numpy(wave))
    parity.identical(f"lengths and shapes: {long_clip}", len(tokens), cases[long_clip]["n"])
    parity.identical(f"S3 speech tokens: {long_clip}", tokens, goldens.arrays("ref")[f"{long_clip}_tokens"])


@torch.no_grad()
def analyse(enroller: VoiceEnroller, wave: np.ndarray, rate: int) -> dict[str, Any]:
    """Every stage's whole result, under the suffixes that the goldens use."""
    nets = enroller._load()
    tokenizer = nets.speech_tokenizer
    wav24 = resample(wave, rate, 24_000)
    wav16 = resample(wav24, 24_000, 16_000)
    whole, flow_24k = torch.from_numpy(wav16), torch.from_numpy(wav24[:240_000])
    ta16 = sinc_resample(flow_24k, 24_000, 16_000)
    start, end = trim_silence(whole)
    ve_mel = voice_encoder_mel(whole[start:end], 40)
    fbank = kaldi_fbank(ta16, 80)
    feat = prompt_mel(flow_24k, 80)

    english, turbo = whole[: 6 * 16_000], whole[: 15 * 16_000]
    s3mel = tokenizer.mel(english)[:, : 150 * 4]
    hidden = encode(tokenizer, s3mel)
    flow_tokens = tokenizer.tokens(ta16)
    trimmed = flow_tokens[: len(feat) // 2]
    return {
        "wav24": wav24,
        "wav16": wav16,
        "ta16": ta16,
        "wav24_len": len(wav24),
        "wav16_len": len(wav16),
        "ta16_len": len(ta16),
        "ve_trim": [start, end],
        "ve_mel": ve_mel,
        "ve_mel_shape": ve_mel.shape,
        "ve_mel_dtype": str(ve_mel.dtype).removeprefix("torch."),
        "ve_embed": nets.voice_encoder.embed(whole),
        "s3mel": s3mel,
        "s3mel_shape": (1, *s3mel.shape),
        "fsq_hidden_en4": hidden[:4],
        "fsq_pre_tanh_en20": tokenizer.quantizer._codebook.project_down(hidden)[:20],
        "t3prompt_en": tokenizer.tokens(english, max_tokens=150),
        "t3prompt_en_margin": rounding_margin(tokenizer, hidden),
        "t3prompt_turbo": tokenizer.tokens(turbo, max_tokens=375),
        "t3prompt_turbo_margin": rounding_margin(tokenizer, encode(tokenizer, tokenizer.mel(turbo)[:, : 375 * 4])),
        "fbank": fbank,
        "fbank_shape": (1, *fbank.shape),
        "xvector": nets.xvector.embed(ta16),
        "prompt_feat": feat,
        "prompt_feat_shape": (1, *feat.shape),
        "prompt_token_untrimmed": flow_tokens,
        "prompt_token_margin": rounding_margin(tokenizer, encode(tokenizer, tokenizer.mel(ta16))),
        "prompt_token": trimmed,
        "prompt_token_len": [len(trimmed)],
    }


def encode(tokenizer: Any, mel: torch.Tensor) -> torch.Tensor:
    return tokenizer.encoder(mel[None], torch.tensor([mel.shape[1]]))[0][0]


def rounding_margin(tokenizer: Any, hidden: torch.Tensor) -> torch.Tensor:
    """For every token the distance of its eight values to the nearest boundary between two levels."""
    return (tokenizer.quantizer.levels(hidden).abs() - 0.5).abs().amin(1)


def excerpt_of(suffix: str) -> tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """The stage whose result a golden shows a part of, and how to cut the same part from ours."""
    name, _, part = suffix.rpartition("_")
    if part == "tail":
        return name, lambda whole, golden: whole[-len(golden) :]
    if part != "head":
        # The prompt mel of all but the first clip is kept as its first frames; its shape is checked by itself.
        return suffix, lambda whole, golden: whole[: len(golden)] if suffix == "prompt_feat" else whole
    if name in ("wav24", "wav16", "ta16"):
        start = int(HEAD_SECONDS * (24_000 if name == "wav24" else 16_000))
        return name, lambda whole, golden: whole[start : start + len(golden)]
    if name == "s3mel":
        return name, lambda whole, golden: whole[:, : golden.shape[1]]
    return name, lambda whole, golden: whole[: len(golden)]
