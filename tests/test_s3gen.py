"""S3Gen on tiny random weights: a row of a batch is what it is alone, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chatterbox_vllm.checkpoint import Weights, published_shapes
from chatterbox_vllm.config import FlowConfig, HiFTConfig, S3GenConfig, XVectorConfig
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.models.s3gen.model import S3Gen, S3GenRequest, fade_in
from chatterbox_vllm.models.s3gen.noise import S3GenNoise
from chatterbox_vllm.models.s3gen.ragged import padding_mask
from chatterbox_vllm.models.s3gen.spectra import inverse_stft, stft

CONFIG = S3GenConfig(
    xvector=XVectorConfig(embedding_size=6),
    flow=FlowConfig(
        vocab_size=50,
        num_mels=8,
        hidden_size=16,
        encoder_heads=2,
        encoder_ff_size=32,
        encoder_blocks=2,
        upsampled_blocks=2,
        estimator_channels=16,
        estimator_heads=2,
        estimator_head_dim=8,
        estimator_transformer_blocks=1,
        estimator_mid_stages=2,
    ),
    hift=HiFTConfig(num_mels=8, base_channels=16, f0_channels=16, f0_layers=2),
)
STEPS = 3


@dataclass(frozen=True)
class Reference:
    prompt_tokens: torch.Tensor
    prompt_mel: torch.Tensor
    xvector: torch.Tensor


def build(config: S3GenConfig, path: Path) -> S3Gen:
    """A model on random weights, by way of a file in the published layout."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        parts = S3Gen(config).published_parts()
    tensors = {}
    for prefix, module in parts.items():
        for key, shape in published_shapes(module, prefix).items():
            value = torch.randn(shape, generator=generator)
            if key.endswith("bias"):
                value *= 0.05
            elif key.endswith("original0"):
                value = 0.5 + 0.05 * value  # more, and the waveform is nothing but its limits
            elif len(shape) > 1:
                value *= value[0].numel() ** -0.5
            else:
                value = 1 + 0.1 * value
            tensors[key] = value
    # Rows with voiced and unvoiced frames.
    tensors["mel2wav.f0_predictor.classifier.weight"] *= 60
    tensors["mel2wav.f0_predictor.classifier.bias"].fill_(15)
    save_file(tensors, path)
    return S3Gen.from_weights(config, Weights(path), "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> S3Gen:
    return build(CONFIG, tmp_path_factory.mktemp("s3gen") / "s3gen.safetensors")


def request(model: S3Gen, tokens: int, prompt_tokens: int, odd_frame: bool = False, seed: int = 0) -> S3GenRequest:
    generator = torch.Generator().manual_seed(1000 + seed)
    voice = Reference(
        torch.randint(0, 50, (prompt_tokens,), generator=generator),
        torch.randn(2 * prompt_tokens + odd_frame, 8, generator=generator),
        torch.randn(6, generator=generator),
    )
    noise = model.draw_noise(torch.Generator().manual_seed(seed), tokens, voice)
    return S3GenRequest(torch.randint(0, 50, (tokens,), generator=generator), voice, noise)


@pytest.fixture(scope="module")
def requests(model: S3Gen) -> list[S3GenRequest]:
    """Other lengths, other voices; the first is short in its generation and long in its prompt."""
    return [
        request(model, 2, 11, seed=1),
        request(model, 9, 3, odd_frame=True, seed=2),
        request(model, 5, 6, seed=3),
        request(model, 1, 1, odd_frame=True, seed=4),
    ]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance of `a` from `b`."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_mel_batched_equals_alone(model: S3Gen, requests: list[S3GenRequest]) -> None:
    for mel, one in zip(model.mel(requests, STEPS), requests, strict=True):
        assert apart(mel, model.mel([one], STEPS)[0]) < 1e-5


def test_vocoder_batched_equals_alone(model: S3Gen) -> None:
    generator = torch.Generator().manual_seed(5)
    lengths = [3, 7, 1]
    padding = padding_mask(lengths, "cpu")
    mel = torch.randn(3, 8, 7, generator=generator).masked_fill(padding[:, None], 0)
    source = torch.randn(3, 7 * 480, generator=generator).tanh()
    waves = model.vocoder.decode(mel, lengths, source)
    for i, frames in enumerate(lengths):
        alone = model.vocoder.decode(mel[i : i + 1, :, :frames], [frames], source[i : i + 1, : frames * 480])[0]
        assert len(alone) == frames * 480
        assert apart(waves[i, : len(alone)], alone) < 1e-5
        pitch = model.vocoder.pitch(mel[i : i + 1, :, :frames], [frames])[0]
        assert apart(model.vocoder.pitch(mel, lengths)[i, :frames], pitch) < 1e-5


def test_audio_batched_equals_alone(model: S3Gen, requests: list[S3GenRequest]) -> None:
    for wave, one in zip(model.synthesize(requests, STEPS), requests, strict=True):
        total, generated = model.frames(len(one.speech_tokens), one.voice)
        assert wave.shape == (generated * 480,) and wave.dtype == torch.float32
        assert total == one.noise.z.shape[1]
        alone = model.synthesize([one], STEPS)[0]
        if generated > 1:  # one frame is all in the silence at the start
            assert apart(wave, alone) < 1e-3


def test_a_seed_gives_the_same_audio_in_any_batch(model: S3Gen, requests: list[S3GenRequest]) -> None:
    one = requests[1]
    again = model.draw_noise(torch.Generator().manual_seed(2), len(one.speech_tokens), one.voice)
    assert all(torch.equal(getattr(again, name), getattr(one.noise, name)) for name in ("z", "phase", "source"))
    assert again.phase[0] == 0
    repeated = replace(one, noise=again)
    alone = model.synthesize([one], STEPS)[0]
    assert torch.equal(model.synthesize([repeated], STEPS)[0], alone)
    assert apart(model.synthesize([requests[0], repeated], STEPS)[1], alone) < 1e-3
    other = replace(one, noise=model.draw_noise(torch.Generator().manual_seed(8), len(one.speech_tokens), one.voice))
    assert apart(model.synthesize([other], STEPS)[0], alone) > 0.1


def test_steps_change_the_audio(model: S3Gen, requests: list[S3GenRequest]) -> None:
    assert apart(model.mel(requests[:1], 2)[0], model.mel(requests[:1], 10)[0]) > 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_half_precision_is_near(
    dtype: torch.dtype, bound: float, model: S3Gen, requests: list[S3GenRequest], tmp_path: Path
) -> None:
    half = build(CONFIG, tmp_path / "s3gen.safetensors")
    half.set_precision(dtype, dtype)
    assert half.encoder.encoder_proj.weight.dtype == half.estimator.dtype == dtype
    assert half.vocoder.conv_post.weight.dtype == dtype
    assert half.estimator.time_mlp.linear_1.weight.dtype == half.vocoder.m_source.l_linear.weight.dtype == torch.float32
    for mel, exact in zip(half.mel(requests, STEPS), model.mel(requests, STEPS), strict=True):
        assert mel.dtype == torch.float32
        assert apart(mel, exact) < bound
    mel, source = torch.randn(1, 8, 4), torch.randn(1, 4 * 480).tanh()
    wave = half.vocoder.decode(mel, [4], source)
    assert wave.dtype == torch.float32
    assert apart(wave, model.vocoder.decode(mel, [4], source)) < bound


def test_meanflow_takes_even_steps_without_guidance(tmp_path: Path) -> None:
    config = replace(CONFIG, flow=replace(CONFIG.flow, meanflow=True))
    model = build(config, tmp_path / "s3gen.safetensors")
    rows: list[int] = []
    hook = model.estimator.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    mel = model.mel([request(model, 4, 3)], steps=2)[0]
    hook.remove()
    assert rows == [1, 1] and mel.shape == (8, 8)


def test_the_padding_of_tokens_does_not_matter(model: S3Gen) -> None:
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    padding = padding_mask([9, 5], "cpu")
    mu = model.encoder(tokens, padding)
    assert apart(mu[1, :10], model.encoder(tokens[1:, :5])[0]) < 1e-5
    assert torch.equal(model.encoder(tokens.masked_fill(padding, 7), padding)[1, :10], mu[1, :10])


def test_spectra_are_those_of_torch() -> None:
    wave = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(16)
    expected = torch.stft(wave, 16, 4, window=window, return_complex=True)
    torch.testing.assert_close(stft(wave, [64, 64], 16, 4), expected)
    inverse = torch.istft(expected, 16, 4, window=window)
    torch.testing.assert_close(inverse_stft(expected, [17, 17], 16, 4), inverse)

    ragged = stft(wave, [64, 40], 16, 4)
    short = torch.stft(wave[1, :40], 16, 4, window=window, return_complex=True)
    torch.testing.assert_close(ragged[1, :, :11], short)
    short_inverse = torch.istft(short[None], 16, 4, window=window)[0]
    torch.testing.assert_close(inverse_stft(ragged, [17, 11], 16, 4)[1, :40], short_inverse)


def test_fade_in() -> None:
    faded = fade_in(torch.ones(1500))
    assert not faded[:480].any() and bool((faded[960:] == 1).all())
    assert bool((faded[480:960].diff() >= 0).all())
    for samples in (0, 100, 480, 700):
        assert torch.equal(fade_in(torch.ones(samples)), faded[:samples])


def test_what_is_refused(model: S3Gen, requests: list[S3GenRequest]) -> None:
    one = requests[0]
    assert model.synthesize([]) == []
    nothing = torch.empty(0, dtype=torch.int64)
    with pytest.raises(GenerationError, match="no speech tokens"):
        model.synthesize([requests[1], replace(one, speech_tokens=nothing)])
    with pytest.raises(GenerationError, match="no speech tokens"):
        model.draw_noise(torch.Generator(), 0, one.voice)
    with pytest.raises(GenerationError, match="speech token 50 is outside the codebook"):
        model.synthesize([replace(one, speech_tokens=torch.tensor([3, 50]))])
    with pytest.raises(ConfigError, match=r"noise.z has shape \(8, 25\), this utterance needs \(8, 26\)"):
        noise = S3GenNoise(one.noise.z[:, 1:], one.noise.phase, one.noise.source)
        model.synthesize([replace(one, noise=noise)])
    with pytest.raises(ConfigError, match="steps must be at least 1, found 0"):
        model.synthesize([one], steps=0)
