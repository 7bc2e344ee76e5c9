"""The vocoder is trained as it is used, learns, and is judged by nets that learn, too."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training import hift
from training.discriminators import Discriminators, discriminator_loss, generator_losses
from training.spectral import SpectralDistance

from chatterbox_vllm.checkpoint.config import HiFTConfig, S3GenConfig
from chatterbox_vllm.s3gen.vocoder.hift import HiFT
from tests.test_training_frames import spoken, write_corpus

TINY = HiFTConfig(
    base_channels=16,
    resblock_kernels=(3,),
    source_kernels=(3, 3, 3),
    resblock_dilations=(1,),
    f0_channels=16,
    f0_layers=2,
)


def test_what_is_trained_is_what_speaks() -> None:
    torch.manual_seed(0)
    model = HiFT(TINY)
    hift.initialise(model)
    mel = torch.randn(2, 80, 9) - 4
    torch.manual_seed(1)
    made = hift.generate(model, mel, model.f0_predictor(mel).detach())
    torch.manual_seed(1)
    phase = (2 * torch.rand(2, 9) - 1) * torch.pi
    phase[:, 0] = 0
    noise = torch.randn(2, 9, 9 * 480)
    torch.testing.assert_close(made, model(mel, [9, 9], phase, noise), rtol=1e-4, atol=1e-5)


def test_crops_are_mel_pitch_and_audio_of_one_place() -> None:
    frames = torch.arange(40)
    crops = hift.Crops(
        frames.repeat_interleave(480).short(), frames[:, None].expand(-1, 80).half(), frames.float(),
        hift.starts_of(np.array([8, 12]), [0, 1], 10), 10,
    )  # fmt: skip
    assert crops.starts.tolist() == [*range(7), *range(16, 31)]
    mel, pitch, wave = crops.at(torch.tensor([3, 20]))
    assert mel.shape == (2, 80, 10) and pitch[1].tolist() == list(range(20, 30))
    torch.testing.assert_close(mel[:, 0], pitch)
    torch.testing.assert_close(wave[:, ::480] * 32_768, pitch)


def test_distance_is_zero_for_the_same_and_falls_towards_it() -> None:
    distance = SpectralDistance()
    wave = torch.from_numpy(spoken(0.6, 120)).float()[None] / 32_768
    assert all(part == 0 for part in distance(wave, wave))
    noise = 0.1 * torch.randn_like(wave)
    near, far = distance(wave + 0.01 * noise, wave), distance(wave + noise, wave)
    assert near[0] < far[0] and near[1] < far[1]


def test_discriminators_tell_noise_from_a_voice_and_teach_the_way_back() -> None:
    torch.manual_seed(0)
    judge = Discriminators((4, 8), 4)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    wave = torch.from_numpy(spoken(0.4, 120)).float()[None, :7200].repeat(2, 1) / 32_768
    fake = torch.randn_like(wave) * 0.1
    first = discriminator_loss(judge, fake, wave)
    for _ in range(12):
        loss = discriminator_loss(judge, fake, wave)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.8 * first
    made = fake.clone().requires_grad_()
    adversarial, matching = generator_losses(judge, made, wave)
    (adversarial + matching).backward()
    assert adversarial > 0 and matching > 0 and made.grad.abs().sum() > 0


def test_training_goes_through_both_stages_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock that counts looks at it, so that the training takes as many steps on every machine.
    looks = itertools.count()
    monkeypatch.setattr("training.loop.time", SimpleNamespace(monotonic=lambda: next(looks) / 10))
    write_corpus(tmp_path / "corpus", [spoken(1 + 0.1 * i, 110 + 15 * i) for i in range(4)])
    arguments = hift.parser().parse_args(
        ["--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "out"), "--device", "cpu", "--seconds", "8"]
        + ["--rows", "2", "--crop", "12", "--warm-up", "0.5", "--resume"]
    )
    trained = hift.train(arguments, S3GenConfig(hift=TINY))
    log = (tmp_path / "out" / "log.jsonl").read_text()
    assert "judge" in log and "held_out_mels" in log and "held_out_unexcited" in log
    # Learnt, it would shrink until nobody hears the source.
    assert trained.m_source.l_linear.weight[0].tolist() == [1.0] + 8 * [0.0]
    arguments.seconds = 0.5
    hift.train(arguments, S3GenConfig(hift=TINY))
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) > len(log.splitlines())
