"""S3Gen on tiny random weights: a row of a batch is what it is alone, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chatterbox_vllm.checkpoint.config import FlowConfig, HiFTConfig, S3GenConfig, XVectorConfig
from chatterbox_vllm.checkpoint.files import Weights, published_shapes
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.s3gen.execution import Execution
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest, fade_in
from chatterbox_vllm.s3gen.noise import S3GenNoise
from chatterbox_vllm.s3gen.packing import PackedLayout, PackedRows, packed_size
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.s3gen.ragged import PaddedLayout, padded_size, padding_mask
from chatterbox_vllm.s3gen.vocoder.spectra import inverse_stft, stft

from .reasons import NO_TRITON

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
    prompt = FlowPrompt(
        torch.randint(0, 50, (prompt_tokens,), generator=generator),
        torch.randn(2 * prompt_tokens + odd_frame, 8, generator=generator),
        torch.randn(6, generator=generator),
    )
    noise = model.draw_noise(seed, tokens, prompt)
    return S3GenRequest(torch.randint(0, 50, (tokens,), generator=generator), prompt, noise)


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
    # With room behind every row and lengths on the device, as in a CUDA graph.
    roomy, sources = torch.nn.functional.pad(mel, (0, 3)), torch.nn.functional.pad(source, (0, 3 * 480), value=0.3)
    on_device = torch.tensor(lengths)
    again = model.vocoder.decode(roomy, on_device, sources)
    together = model.vocoder.pitch_together(roomy, on_device)
    for i, frames in enumerate(lengths):
        assert apart(again[i, : frames * 480], waves[i, : frames * 480]) < 1e-5
        assert apart(together[i, :frames], model.vocoder.pitch(mel, lengths)[i, :frames]) < 1e-6


def test_audio_batched_equals_alone(model: S3Gen, requests: list[S3GenRequest]) -> None:
    for wave, one in zip(model.synthesize(requests, STEPS), requests, strict=True):
        total, generated = model.frames(len(one.speech_tokens), one.prompt)
        assert wave.shape == (generated * 480,) and wave.dtype == torch.float32
        assert total == one.noise.z.shape[1]
        alone = model.synthesize([one], STEPS)[0]
        if generated > 1:  # one frame is all in the silence at the start
            assert apart(wave, alone) < 1e-4


def test_a_seed_gives_the_same_audio_in_any_batch(model: S3Gen, requests: list[S3GenRequest]) -> None:
    one = requests[1]
    again = model.draw_noise(2, len(one.speech_tokens), one.prompt)
    assert all(torch.equal(getattr(again, name), getattr(one.noise, name)) for name in ("z", "phase", "source"))
    assert again.phase[0] == 0
    repeated = replace(one, noise=again)
    alone = model.synthesize([one], STEPS)[0]
    assert torch.equal(model.synthesize([repeated], STEPS)[0], alone)
    assert apart(model.synthesize([requests[0], repeated], STEPS)[1], alone) < 1e-3
    other = replace(one, noise=model.draw_noise(8, len(one.speech_tokens), one.prompt))
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
    spectra = stft(wave, [64, 64], 16, 4)
    torch.testing.assert_close(torch.complex(*spectra.chunk(2, dim=1)), expected)
    inverse = torch.istft(expected, 16, 4, window=window)
    torch.testing.assert_close(inverse_stft(spectra, [17, 17], 16, 4), inverse)

    short = torch.stft(wave[1, :40], 16, 4, window=window, return_complex=True)
    short_inverse = torch.istft(short[None], 16, 4, window=window)[0]
    for lengths in ([64, 40], torch.tensor([64, 40])):
        ragged = stft(wave, lengths, 16, 4)
        torch.testing.assert_close(torch.complex(*ragged.chunk(2, dim=1))[1, :, :11], short)
        counts = torch.tensor([17, 11]) if isinstance(lengths, torch.Tensor) else [17, 11]
        torch.testing.assert_close(inverse_stft(ragged, counts, 16, 4)[1, :40], short_inverse)


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
        model.draw_noise(0, 0, one.prompt)
    with pytest.raises(GenerationError, match="speech token 50 is outside the codebook"):
        model.synthesize([replace(one, speech_tokens=torch.tensor([3, 50]))])
    with pytest.raises(ConfigError, match=r"noise.z has shape \(8, 25\), this utterance needs \(8, 26\)"):
        noise = S3GenNoise(one.noise.z[:, 1:], one.noise.phase, one.noise.source)
        model.synthesize([replace(one, noise=noise)])
    with pytest.raises(ConfigError, match="steps must be at least 1, found 0"):
        model.synthesize([one], steps=0)


def test_what_can_be_asked_for() -> None:
    single, half = torch.float32, torch.float16
    assert Execution.choose("cpu", half, single) == Execution(half, single, "torch", cuda_graphs=False)
    assert Execution.choose("cuda", single, single) == Execution(single, single, "torch", cuda_graphs=True)
    fast = Execution.choose("cuda", half, single)
    assert fast == Execution(half, single, "triton", cuda_graphs=True) and fast.vocoder_kernels == "torch"
    assert Execution.choose("cuda", half, half).vocoder_kernels == "triton"
    assert Execution.choose("cuda:1", half, half, "torch", False) == Execution(half, half, "torch", cuda_graphs=False)
    with pytest.raises(ConfigError, match="float32, float16 or bfloat16, found torch.float64"):
        Execution.choose("cpu", single, torch.float64)
    with pytest.raises(ConfigError, match="need a CUDA device, not cpu"):
        Execution.choose("cpu", half, half, "triton")
    with pytest.raises(ConfigError, match="not torch.float32"):
        Execution.choose("cuda", single, half, "triton")
    with pytest.raises(ConfigError, match="CUDA graphs need a CUDA device, not cpu"):
        Execution.choose("cpu", single, single, cuda_graphs=True)
    with pytest.raises(ConfigError, match="found 'cutlass'"):
        Execution.choose("cuda", half, half, "cutlass")  # type: ignore[arg-type]


def test_what_is_in_force_can_be_read_back(tmp_path: Path) -> None:
    model = build(CONFIG, tmp_path / "s3gen.safetensors")
    assert model.execution == Execution(torch.float32, torch.float32, "torch", cuda_graphs=False)
    model.set_precision(torch.bfloat16, torch.float32)
    assert model.execution.dtype == model.estimator.dtype == torch.bfloat16
    with pytest.raises(ConfigError):
        model.set_precision(torch.float16, torch.float16, kernels="triton")
    assert model.execution.dtype == model.estimator.dtype == torch.bfloat16


def test_overflow_in_half_precision_names_the_remedy(
    model: S3Gen, requests: list[S3GenRequest], tmp_path: Path
) -> None:
    half = build(CONFIG, tmp_path / "s3gen.safetensors")
    half.set_precision(torch.float16, torch.float32)
    prompt = requests[1].prompt
    loud = replace(requests[1], prompt=replace(prompt, mel=prompt.mel * 1e9))
    for speak in (half.synthesize, half.mel, half.flow):
        with pytest.raises(GenerationError, match="mel of utterance 1 .* float16; use s3gen dtype bfloat16 or float32"):
            speak([requests[0], loud], STEPS)
    assert half.synthesize(requests[:1], STEPS)[0].isfinite().all()


def test_a_prompt_is_prepared_once(tmp_path: Path) -> None:
    model = build(CONFIG, tmp_path / "s3gen.safetensors")
    projections = []
    model.speaker.register_forward_hook(lambda *_: projections.append(None))
    one = request(model, 4, 3)
    (plain,) = model.mel([one], STEPS)
    equal = replace(one, prompt=replace(one.prompt, mel=one.prompt.mel.clone()))
    assert apart(model.mel([equal, one], STEPS)[0], plain) < 1e-5
    assert len(projections) == 1 and len(model._prompts) == 1
    model._prompts.most_bytes = model._prompts.bytes
    model.mel([replace(one, prompt=replace(one.prompt, xvector=-one.prompt.xvector))], STEPS)
    assert len(projections) == 2 and len(model._prompts) == 1


def test_sizes_that_graphs_are_recorded_for_are_few_and_near() -> None:
    packed = {packed_size(frames) for frames in range(1, 49_153)}
    assert len(packed) == 13
    assert all(frames <= packed_size(frames) <= 1.5 * frames for frames in range(1024, 100_000, 7))
    assert len({padded_size(frames) for frames in range(550, 1501)}) == 4
    assert all(frames <= padded_size(frames) < frames + 256 for frames in range(1, 5000))


@pytest.mark.parametrize("bucketed", [False, True])
def test_layouts(bucketed: bool) -> None:
    lengths = [3, 150, 1, 64]
    rows = torch.nn.utils.rnn.pad_sequence([torch.randn(n, 2) for n in lengths], batch_first=True)
    layout = PackedLayout.of(lengths, "cpu", streams=2, bucketed=bucketed)
    packed = layout.pack(rows)
    assert packed.shape == (layout.frames, 2) and layout.frames == (512 if bucketed else 218)
    for row, found, length in zip(rows, layout.unpack(packed), lengths, strict=True):
        assert torch.equal(found, row[:length])
    assert len(layout.position) == len(layout.remaining) == 2 * layout.frames
    assert layout.position[:5].tolist() == [0, 1, 2, 0, 1] and layout.remaining[:5].tolist() == [2, 1, 0, 149, 148]
    tiles = [tuple(tile) for tile in layout.tiles.tolist() if tile[1]]
    second = layout.frames
    assert tiles[:3] == [(3, 150, 0), (3, 150, 64), (3, 150, 128)] and tiles[3][0] == second + 3
    assert len(set(tiles)) == len(tiles) == 2 * 6
    if bucketed:  # however many rows there are, as long as they are at most 32
        for other in ([218], [8] * 32, [1] * 31 + [400]):
            tables = PackedLayout.of(other, "cpu", streams=2, bucketed=True).tables
            assert [t.shape for t in tables] == [t.shape for t in layout.tables]

    by_rate = PackedRows.of(lengths, "cpu")
    assert torch.equal(by_rate.unpack(by_rate.pack(rows)), rows)
    padded = PaddedLayout.of(lengths, "cpu", bucketed=bucketed)
    assert padded.pack(rows).shape == (4, 256 if bucketed else 150, 2)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=NO_TRITON)
def test_kernels_and_packed_networks_by_the_interpreter(tmp_path: Path) -> None:
    script = (
        "import sys, json, torch; from pathlib import Path; from tests import test_gpu_s3gen as fast\n"
        "from chatterbox_vllm.s3gen import packing; packing.SIZES = (192,)\n"  # the interpreter is slow
        "kernels = fast.largest_error_of_kernels('cpu', torch.float32)\n"
        "print(json.dumps([kernels, fast.largest_error_of_networks(Path(sys.argv[1]))]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    kernels, networks = json.loads(result.stdout.splitlines()[-1])
    # On a CPU torch's fused GELU is the exact one.
    assert kernels.pop("gelu_linear") < 1e-3
    assert max(kernels.values()) < 1e-5 and max(networks.values()) < 1e-5
