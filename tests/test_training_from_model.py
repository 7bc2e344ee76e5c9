"""A model is taken apart into what the training scripts leave, and is the same when it is put together again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training import export, from_model
from training.codes import CODES, Codes
from training.data import Corpus, CorpusError
from training.features import to_16k
from training.small import SMALL
from training.tokenizer_model import load_trained

from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.families.small import small_directory

from .made_up_corpus import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(write_corpus(tmp_path_factory.mktemp("corpus"), sentences=4))


@pytest.fixture(scope="module")
def parts(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts")
    from_model.take_apart(small_directory(), corpus, out, torch.device("cpu"))
    return out


def test_the_same_model_comes_out(parts: Path, tmp_path: Path) -> None:
    export.export(parts, tmp_path, SMALL, [])
    own = config_of(small_directory())
    assert config_of(tmp_path) == replace(own, diffusion_steps=SMALL.diffusion_steps)
    assert own.codebook, "voices of the model go with what is trained on, by the name of its tokens"
    for name in export.FILES.values():
        before, after = load_file(small_directory() / name), load_file(tmp_path / name)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            # Parts are kept in float16, weight-normed ones with norms of their own.
            torch.testing.assert_close(
                after[key].float(), tensor.float(), rtol=0, atol=3e-3 * float(tensor.abs().max()), msg=key
            )


def test_what_tokens_share_is_found_again(parts: Path) -> None:
    """Rare tokens are known by their digits, so a table may not become all rows of their own."""
    from training.t3 import load_t3

    table = load_t3(parts / "t3").speech_table
    shared = table.features @ table.shared
    assert shared.square().mean() > 0.3 * table().square().mean()


def test_codes_are_what_enrolment_says(parts: Path, corpus: Corpus) -> None:
    codes = Codes.read(parts / CODES)
    config = config_of(small_directory())
    nets = from_model.Nets(small_directory(), config, torch.device("cpu"))
    for i in range(2):
        wave = to_16k(torch.from_numpy(corpus.audio(i).astype(np.float32) / 32_768))
        assert codes.of(i).tolist() == nets.tokenizer.tokens(wave).tolist()
        embedding = nets.voice_encoder.embed(wave)
        assert torch.cosine_similarity(torch.from_numpy(codes.embeddings[i]), embedding.flatten(), dim=0) > 0.99


def test_heads_that_a_model_lacks_are_missed(parts: Path) -> None:
    with pytest.raises(CorpusError, match="--spoken 0"):
        load_trained(parts / "tokenizer")
