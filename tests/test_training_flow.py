"""The flow is trained as it is used: one velocity, one schedule, one condition."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training import flow
from training.codes import Codes
from training.data import Corpus
from training.flow_mels import flow_mel, replace_by_flow
from training.frames import Features
from training.rows import Rows, batches
from training.weights import keep_weights

from chatterbox_vllm.checkpoint.config import FlowConfig, S3GenConfig, XVectorConfig
from chatterbox_vllm.s3gen.flow.solver import time_span, velocity_of
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.s3gen.request import S3GenRequest
from tests.test_training_frames import spoken, write_corpus

TINY = S3GenConfig(
    xvector=XVectorConfig(embedding_size=16),
    flow=FlowConfig(
        hidden_size=32,
        encoder_heads=2,
        encoder_ff_size=32,
        encoder_blocks=1,
        upsampled_blocks=1,
        estimator_channels=32,
        estimator_heads=2,
        estimator_head_dim=16,
        estimator_transformer_blocks=1,
        estimator_mid_stages=1,
    ),
)


def networks() -> flow.FlowNetworks:
    torch.manual_seed(0)
    made = flow.FlowNetworks(TINY)
    made.initialise(torch.linspace(-6, -3, 80))
    return made


@torch.no_grad()
def test_the_trained_velocity_is_the_solvers() -> None:
    trained = networks()
    model = S3Gen(TINY)
    model.load_state_dict(trained.published_state(), strict=False)
    lengths = torch.tensor([9, 13])
    tokens = torch.randint(0, 6561, (2, 13))
    xvector, mel, z = torch.randn(2, 16), torch.randn(2, 26, 80), torch.randn(2, 26, 80)
    prompt_frames = torch.tensor([6, 10])
    prompt = torch.arange(26) < prompt_frames[:, None]
    padding = torch.arange(13) >= lengths[:, None]
    frame_padding = padding.repeat_interleave(2, 1)

    condition = trained.condition(tokens, xvector, mel * prompt[..., None], padding)
    moment = time_span(4, cosine=True)[2]
    state = (1 - moment) * z + moment * mel
    ours = trained.velocity(state, condition, moment.expand(2), frame_padding)
    dropped = trained.velocity(state, torch.zeros_like(condition), moment.expand(2), frame_padding)

    for row, length in enumerate(lengths.tolist()):
        frames = 2 * length
        # What `TokenToMel` gives the solver for the row alone.
        mu = model.encoder(tokens[row : row + 1, :length])
        speaker = model.speaker(F.normalize(xvector[row : row + 1], dim=-1))[:, None].expand(-1, frames, -1)
        given = F.pad(mel[row, : prompt_frames[row]], (0, 0, 0, frames - int(prompt_frames[row])))[None]
        alone = torch.cat([mu, speaker, given], dim=-1)
        time = model.estimator.time_table(moment[None], moment[None])
        x = state[row : row + 1, :frames]
        for rate, expected in ((0.0, ours), (-1.0, dropped)):
            found = velocity_of(model.estimator, rate)(x, alone, time)[0]
            torch.testing.assert_close(expected[row, :frames], found, rtol=1e-4, atol=1e-4)


def test_loss_counts_what_follows_the_prompt_only() -> None:
    trained = networks()
    tokens, mel = torch.randint(0, 6561, (1, 8)), torch.randn(1, 16, 80)
    padding = torch.arange(8)[None] >= 7
    prompt = torch.arange(16)[None] < 6
    u, z = torch.full((1,), 0.3), torch.randn(1, 16, 80)
    kept = torch.zeros(1, dtype=torch.bool)
    batch = (tokens, mel, torch.randn(1, 16), padding, prompt)
    matching, _ = flow.losses(trained, batch, kept, u, z)
    t = 1 - torch.cos(u * torch.pi / 2)
    velocity = trained.velocity(
        (1 - t) * z + t * mel,
        trained.condition(tokens, batch[2], mel * prompt[..., None], padding),
        t,
        padding.repeat_interleave(2, 1),
    )
    expected = (velocity - (mel - z))[:, 6:14].square().mean()
    torch.testing.assert_close(matching, expected)
    matching.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.estimator.parameters())


def test_rows_are_of_one_speaker_and_end_as_utterances_do() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 300, 200)
    begins, speakers = np.cumsum(counts) - counts, rng.integers(0, 7, 200)
    utterances = np.flatnonzero(rng.random(200) < 0.9)
    source = batches(utterances, speakers, counts, begins, 4000, rng)
    seen, joined = 0, 0
    ends = set((begins + counts)[utterances].tolist())
    while seen < 2000:
        rows = next(source)
        assert len(rows.begin) * rows.length <= 4000 and rows.length % 16 == 0
        assert (rows.prompt_count + rows.count).max() <= rows.length < (rows.prompt_count + rows.count).max() + 16
        assert set((rows.begin + rows.count).tolist()) <= ends
        assert (rows.count > 0).all() and (rows.prompt_count <= 250).all()
        owner = np.searchsorted(begins, rows.begin, side="right") - 1
        assert (speakers[rows.voice] == speakers[owner]).all() and np.isin(owner, utterances).all()
        prompted = rows.prompt_count > 0
        prompter = np.searchsorted(begins, rows.prompt_begin, side="right") - 1
        assert (speakers[prompter] == speakers[owner])[prompted].all()
        seen += len(rows.begin)
        joined += int((prompter != owner)[prompted].sum())
    assert 0.4 < joined / seen < 0.6


def tiny_training(tmp_path: Path) -> tuple[argparse.Namespace, Path]:
    waves = [spoken(1 + 0.05 * i, 100 + 10 * i) for i in range(8)]
    corpus = write_corpus(tmp_path / "corpus", waves)
    rng = np.random.default_rng(0)
    counts = Features.of(corpus, torch.device("cpu"), 80).counts
    Codes(
        rng.integers(0, 6561, counts.sum()), counts, rng.standard_normal((8, 16)), rng.standard_normal((8, 256))
    ).write(tmp_path / "codes")
    return flow.parser().parse_args(
        ["--corpus", str(tmp_path / "corpus"), "--tokens", str(tmp_path / "codes"), "--out", str(tmp_path / "out")]
        + ["--device", "cpu", "--seconds", "6", "--frames", "400", "--resume"]
    ), tmp_path / "out"


def test_it_learns_and_the_model_speaks_with_what_it_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, out = tiny_training(tmp_path)
    # A clock that counts looks at it, so that the training takes as many steps on every machine.
    looks = itertools.count()
    monkeypatch.setattr("training.loop.time", SimpleNamespace(monotonic=lambda: next(looks) / 75))
    arguments.seconds = 6.0
    trained = flow.train(arguments, TINY)
    lines = (out / "log.jsonl").read_text().splitlines()
    assert len(lines) >= 2
    features = Features.of(Corpus(arguments.corpus), torch.device("cpu"), 80)
    model = S3Gen(TINY)
    model.load_state_dict(trained.published_state(), strict=False)
    prompt = FlowPrompt(torch.arange(20), features.mels[:40].float(), torch.randn(16))
    tokens = torch.arange(30)
    mel = model.mel([S3GenRequest(tokens, prompt, model.draw_noise(1, 30, prompt))], 4)[0]
    mean = features.mels.float().mean(0)
    assert mel.shape == (60, 80)
    assert (mel.mean(0) - mean).abs().mean() < 3  # found: 1.3 to 2.1; noise alone is 8 away


def test_mels_for_the_vocoder_are_those_of_inference(tmp_path: Path) -> None:
    arguments, _ = tiny_training(tmp_path)
    trained = networks()
    keep_weights(tmp_path / "flow", trained.state_dict(), {})
    corpus, codes = Corpus(arguments.corpus), Codes.read(arguments.tokens)
    features = Features.of(corpus, torch.device("cpu"), 80)
    trained = flow.load_flow(tmp_path / "flow", TINY)
    model = S3Gen(TINY)
    model.load_state_dict(trained.published_state(), strict=False)

    make = flow.Batches(features, codes, torch.device("cpu"))
    counts, begins = codes.counts.astype(np.int64), codes.begins
    rows = Rows(begins[[2, 3]], np.array([10, 20]), begins[[4, 5]], counts[[4, 5]], np.array([2, 3]), 64)
    z = torch.randn(2, 128, 80)
    made = flow_mel(trained, make(rows), TINY.flow.cfg_rate, z)
    for row, (prompter, spoken_one, tokens) in enumerate(((2, 4, 10), (3, 5, 20))):
        begin = 2 * begins[prompter]
        prompt = FlowPrompt(
            torch.from_numpy(codes.of(prompter)[:tokens].astype(np.int64)),
            features.mels[begin : begin + 2 * tokens].float(),
            torch.from_numpy(codes.xvectors[prompter]),
        )
        count = int(counts[spoken_one])
        noise = model.draw_noise(1, count, prompt)
        noise = type(noise)(z[row, : 2 * (tokens + count)].T, noise.phase, noise.source)
        said = torch.from_numpy(codes.of(spoken_one).astype(np.int64))
        expected = model.mel([S3GenRequest(said, prompt, noise)], 10)[0]
        torch.testing.assert_close(made[row, 2 * tokens : 2 * (tokens + count)], expected, rtol=1e-3, atol=1e-3)

    before = features.mels.clone()
    replace_by_flow(features, corpus, arguments.tokens, tmp_path / "flow", TINY, seed=1)
    changed = (features.mels != before).any(1)
    kept = 2 * int(begins[7])  # the held-out utterance is the last
    assert not changed[kept:].any() and changed[:kept].float().mean() > 0.5
