"""The multilingual model against the goldens: text, T3 through the vLLM engine in mixed languages, text to waveform."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import get_num_threads, set_num_threads

from chatterbox_vllm import ChatterboxTTS, SpeechParameters, SpeechRequest
from chatterbox_vllm.errors import CheckpointError
from chatterbox_vllm.families.multilingual import MULTILINGUAL, TOKENIZER
from chatterbox_vllm.t3 import sampling
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.vllm.stage import T3Stage
from chatterbox_vllm.text.languages.chinese import TABLE
from chatterbox_vllm.text.normalize import normalize_any_punctuation
from chatterbox_vllm.text.tokenizer import MultilingualTokenizer

from . import test_t3
from .conftest import Goldens, Parity, find_published_tokenizer, need_published_tokenizer, place_for
from .oracle import weights_recipe as recipe
from .oracle.checkpoint import write_multilingual
from .test_end_to_end import WAVEFORM_BOUND, oracle_noise

CODEBOOK = 6561
# The characters of its one Chinese text in the oracle's table.
CANGJIE = "你onf 好vnd 我hqi 是amyo 中l 国wmgi 國wirm 人o 今oin 天mk 气omn 氣omnfd 很hoav"
# The published code adds neither diacritics nor stress where a library is missing, as when the goldens were made.
WITH_LIBRARIES = ("ja",)


@pytest.fixture(scope="module")
def parity() -> Parity:
    return Parity("multilingual ")


@pytest.fixture(scope="module")
def multilingual(checkpoint_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatterboxTTS]:
    """The whole model at its full size, float32, on the CPU."""
    threads = get_num_threads()
    set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count() or 1)
    with place_for(tmp_path_factory, "multilingual") as directory:
        write_multilingual(directory, checkpoint_dir, find_published_tokenizer(TOKENIZER))
        with ChatterboxTTS.from_local(directory, "cpu", max_model_len=256, max_batch_size=8) as tts:
            yield tts
    set_num_threads(threads)


# The English model's tests of T3, with these in place of its own.
test_conditioning, test_prompt, test_alone = test_t3.test_conditioning, test_t3.test_prompt, test_t3.test_alone
test_in_one_batch, recorder = test_t3.test_in_one_batch, test_t3.recorder


@pytest.fixture(scope="module")
def to_the_end() -> bool:
    return False  # it is the same code


@pytest.fixture(scope="module")
def golden(goldens: Goldens) -> Any:
    return goldens.arrays("t3_multilingual")


@pytest.fixture(scope="module")
def cases(goldens: Goldens) -> list[dict[str, Any]]:
    return goldens.json("t3_multilingual")["cases"]


@pytest.fixture(scope="module")
def builder(multilingual: ChatterboxTTS) -> PromptBuilder:
    return multilingual._engine.scheduler.preparation.prompts.builder


@pytest.fixture(scope="module")
def talker(multilingual: ChatterboxTTS) -> T3Stage:
    return multilingual.t3_stage


def test_followed_by_the_guard(
    talker: T3Stage, cases: list[dict[str, Any]], builder: PromptBuilder, golden: Any, parity: Parity
) -> None:
    """With the end held back wherever attention says so, which of made-up weights is nearly always."""
    assert talker.config.alignment_heads == MULTILINGUAL.config.t3.alignment_heads and talker.options.follow_text
    for case in cases:
        test_t3.add(talker, case, test_t3.prompt_of(case, builder, golden), case["n"], end_held_for=case["n"])
    tokens = test_t3.drain(talker)
    for case in cases:
        wanted = golden[f"{case['key']}_tokens"]
        parity.identical(f"T3 tokens, the text followed: {case['key']}", tokens[case["key"]], wanted)


def test_punctuation(goldens: Goldens, parity: Parity) -> None:
    for row in goldens.json("text")["punc_norm"]:
        differs = normalize_any_punctuation(row["text"]) != row["multilingual"]
        parity.check(f"text normalisation: {row['text']!r}", differs, 0)


def test_token_ids(goldens: Goldens, parity: Parity, tmp_path: Path) -> None:
    shutil.copy(need_published_tokenizer(parity, TOKENIZER), tmp_path / TOKENIZER)
    rows = goldens.json("text")["multilingual_tokenizer"]
    without_table, tokenizer = MultilingualTokenizer(tmp_path / TOKENIZER), MultilingualTokenizer(tmp_path / TOKENIZER)
    for row in rows["no_cangjie"]:
        text, language = normalize_any_punctuation(row["text"]), row["lang"]
        if language == "zh":  # the published code makes [UNK] of every character
            with pytest.raises(CheckpointError, match=f"{TABLE}: no such file"):
                without_table.encode(text, language, prepared=True)
        else:
            ids = tokenizer.encode(text, language, prepared=language not in WITH_LIBRARIES)
            parity.identical(f"text tokens: {language} {text!r}", ids, row["ids"])
    (tmp_path / TABLE).write_text(json.dumps([f"{entry[0]}\t{entry[1:]}" for entry in CANGJIE.split()]))
    for row in rows["cangjie_fixture"]:
        ids = tokenizer.encode(normalize_any_punctuation(row["text"]), row["lang"], prepared=True)
        parity.identical(f"text tokens: {row['lang']} {row['text']!r}", ids, row["ids"])


def test_text_to_waveform(
    multilingual: ChatterboxTTS, goldens: Goldens, golden: Any, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With somebody else, in another language, in the same batch.

    The oracle took the remainder by 6561 of what it drew above the codebook and spoke on with that. So does the sampler
    here, which leaves such tokens out otherwise: the weights are made up and draw many.
    """
    (case, facts), draws = next(iter(goldens.json("e2e_multilingual").items())), sampling.draw
    arrays = goldens.arrays("e2e_multilingual")

    def wrapped(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        drawn = draws(logits, u)
        return torch.where(drawn < CODEBOOK, drawn, drawn % CODEBOOK)

    monkeypatch.setattr(sampling, "draw", wrapped)
    text, language = facts["kwargs"]["text"], facts["kwargs"]["language_id"]
    if find_published_tokenizer(TOKENIZER) is None:
        ids = golden["e0t0_text_tokens"][0, 1:-1].tolist()  # of the same text
        encode = MultilingualTokenizer.encode
        monkeypatch.setattr(
            MultilingualTokenizer,
            "encode",
            lambda own, words, *told: ids if words == text and told[0] == language else encode(own, words, *told),
        )
    voice = multilingual.voice
    request = SpeechRequest(
        text,
        voice,
        SpeechParameters(max_tokens=facts["eos_forced_at_step"]),
        language=language,
        noise=oracle_noise(multilingual, facts["tag"], voice, facts["n_speech_tokens"]),
        uniforms=tuple(recipe.uniform(facts["uniform_key"], 2000).tolist()),
    )
    other = SpeechRequest("Somebody else.", voice, SpeechParameters(max_tokens=8), language="de")
    raw: list[np.ndarray] = []
    watermarker = multilingual._engine.voicing.watermarker
    mark = watermarker.apply
    monkeypatch.setattr(watermarker, "apply", lambda wave: raw.append(wave.copy()) or mark(wave))
    spoken, beside = sorted(multilingual.run([request, other]), key=lambda result: result.index)
    assert spoken.error is beside.error is None and spoken.language == language
    parity.identical(f"speech tokens end to end: {case}", spoken.speech_tokens, arrays[f"{case}_speech_tokens"])
    (unmarked,) = (wave for wave in raw if len(wave) == facts["raw_len"])
    parity.relative(f"text to waveform, in a batch: {case}", unmarked, arrays[f"{case}_raw"], WAVEFORM_BOUND)
    parity.relative(
        f"text to watermarked waveform, in a batch: {case}", spoken.audio, arrays[f"{case}_wav"], WAVEFORM_BOUND
    )
    # The last token's audio is cut off.
    assert len(spoken.audio) == (facts["n_speech_tokens"] - 1) * 960
    assert replace(beside, audio=None).segments == 1 and len(beside.audio) == 7 * 960
