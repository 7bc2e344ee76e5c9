"""Training of the speaker nets: they compute what enrolment computes, and they learn to tell speakers apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training import speakers as training
from training.data import Corpus
from training.features import to_16k, waves_24k

from chatterbox_vllm.checkpoint.config import ModelConfig, S3GenConfig, VoiceEncoderConfig, XVectorConfig
from chatterbox_vllm.voices.nets.xvector import CAMPPlus

from .made_up_corpus import write_corpus

XVECTOR = XVectorConfig(head_channels=4, init_channels=16, growth_rate=8, bottleneck_factor=2, block_layers=(1, 1, 1))
CONFIG = ModelConfig(s3gen=S3GenConfig(xvector=XVECTOR), voice_encoder=VoiceEncoderConfig(hidden_size=24, num_layers=2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(write_corpus(tmp_path_factory.mktemp("corpus")))


@pytest.fixture(scope="module")
def material(corpus: Corpus) -> training.Material:
    return training.Material(corpus, CONFIG, torch.device("cpu"))


def test_vectors_of_the_corpus_are_those_of_enrolment(corpus: Corpus, material: training.Material) -> None:
    torch.manual_seed(0)
    encoder = training.trainable_voice_encoder(CONFIG.voice_encoder, material.mels.values)
    xvector = training.trainable_xvector(XVECTOR)
    xvector(material.fbanks.crops(torch.arange(4), 100, repeat=True).float())  # moves the running means
    xvector.eval()
    untouched = CAMPPlus(XVECTOR)
    untouched.load_state_dict(xvector.state_dict())
    embeddings = training.voice_embeddings(encoder, material.mels)
    xvectors = training.xvectors(xvector, material.fbanks)
    for index, wave in enumerate(waves_24k(corpus, torch.device("cpu"))):
        wave = to_16k(wave)
        assert np.allclose(embeddings[index], encoder.embed(wave)[0].numpy(), atol=2e-3)
        assert np.allclose(xvectors[index], untouched.embed(wave)[0].numpy(), rtol=0.02, atol=0.02)


def test_norms_learn_and_follow_the_batches() -> None:
    torch.manual_seed(0)
    net = training.trainable_xvector(XVECTOR)
    net(torch.randn(4, 60, 80)).square().mean().backward()
    norm = net.xvector.tdnn.nonlinear.batchnorm
    assert norm.weight.grad is not None and norm.running_mean.abs().max() > 0
    before = norm.running_mean.clone()
    net.eval()(torch.randn(4, 60, 80))
    assert torch.equal(norm.running_mean, before)


def test_margin_makes_it_harder() -> None:
    torch.manual_seed(0)
    margin = training.Margin(8, 3)
    vectors, speakers = torch.randn(6, 8), torch.arange(6) % 3
    assert margin(vectors, speakers, 0.2)[0] > margin(vectors, speakers, 0.0)[0]
    assert margin(margin.centres.detach()[speakers], speakers, 0.2)[1] == 1


def test_equal_error_rate() -> None:
    speakers = np.array([0, 0, 1, 1])
    apart = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert training.equal_error_rate(apart, speakers) == 0
    assert training.nearest_right(apart, speakers) == 1
    mixed = apart[[0, 2, 1, 3]]
    assert training.equal_error_rate(mixed, speakers) >= 0.5
    assert training.nearest_right(mixed, speakers) == 0


def test_disturbed_features_stay_features(material: training.Material) -> None:
    torch.manual_seed(0)
    mels = material.mels.crops(torch.arange(6), 160, repeat=False).float()
    assert (training.disturbed_power(mels) >= 0).all()
    features = training.disturbed_fbank(material.fbanks.crops(torch.arange(6), 100, repeat=True).float())
    assert features.mean(1).abs().max() < 1e-3


def test_both_nets_learn_to_tell_speakers_apart(corpus: Corpus, material: training.Material) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = training.Trained(CONFIG, len(material.by_speaker), material.mels.values)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(40):
        rows, speakers = material.draw(8, random)
        voice, _ = model.voice_margin(model.voice_encoder(material.mels.crops(rows, 160, False).float()), speakers, 0.0)
        xvector, _ = model.xvector_margin(model.xvector(material.fbanks.crops(rows, 60, True).float()), speakers, 0.0)
        optimizer.zero_grad()
        (voice + xvector).backward()
        optimizer.step()
    model.eval()
    speakers = np.array(material.speakers)[corpus.training]
    for vectors in (
        training.voice_embeddings(model.voice_encoder, material.mels),
        training.xvectors(model.xvector, material.fbanks),
    ):
        assert training.nearest_right(vectors[corpus.training], speakers) > 0.8


def test_script_leaves_vectors_and_resumes(corpus: Corpus, tmp_path: Path) -> None:
    options = ["--corpus", str(corpus.directory), "--out", str(tmp_path / "speakers"), "--device", "cpu"]
    for more in ([], ["--resume"]):
        arguments = training.parser().parse_args([*options, "--seconds", "1", "--batch", "8", *more])
        training.train(arguments, CONFIG)
    log = [json.loads(line) for line in (tmp_path / "speakers" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] > log[1]["step"]
    assert 0 <= log[-1]["held_out_xvector_eer"] <= 1
    vectors = np.load(tmp_path / "codes" / "xvectors.npy")
    assert vectors.shape == (len(corpus.utterances), XVECTOR.embedding_size) and np.isfinite(vectors).all()
    assert np.load(tmp_path / "codes" / "embeddings.npy").shape == (len(corpus.utterances), 256)
