"""S3Gen's fast paths: kernels against plain torch (also on the CPU, by Triton's interpreter), and all of it on a GPU.

Run on a GPU with `-m gpu`. At full size: the synthetic weights of the parity tests, a reference of 10 s.
"""

from __future__ import annotations

import json
import random
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cuda.graphs import GraphedFunction, GraphPool
from chatterbox_vllm.cuda.precision import ieee_float32
from chatterbox_vllm.engine.chunks import QUICK
from chatterbox_vllm.errors import GenerationError
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.s3gen.packing import SIZES, PackedLayout
from chatterbox_vllm.s3gen.prompt import FlowPrompt
from chatterbox_vllm.s3gen.ragged import PaddedLayout
from chatterbox_vllm.s3gen.streaming.flow import TOKENS
from chatterbox_vllm.s3gen.streaming.state import StreamChunk
from chatterbox_vllm.s3gen.streaming.vocoder import FRAMES, MelStretch, VocoderState

from . import test_s3gen as tiny
from .parity.oracle import weights_recipe as recipe

pytestmark = pytest.mark.gpu

LENGTHS = (37, 140, 5)
HALF = (torch.float16, torch.bfloat16)
# Relative L2 distance of a half-precision mel from float32's; measured on an H200: 1.5e-3 and 1.1e-2.
MEL = {torch.float16: 3e-3, torch.bfloat16: 2.5e-2}
# Likewise of a waveform from the same mel, pitch and source in float32; measured: 1.4e-3 and 1.1e-2.
WAVE = {torch.float16: 3e-3, torch.bfloat16: 2.5e-2}


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return tiny.apart(a.float(), b.float())


def largest_error_of_kernels(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Each kernel against its torch equivalent in float32, on values that `dtype` can hold."""
    from chatterbox_vllm.s3gen import kernels

    generator = torch.Generator().manual_seed(0)

    def random_values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    errors: dict[str, float] = {}
    layout = PackedLayout.of(LENGTHS, device, streams=2, bucketed=True)
    frames, width = 2 * layout.frames, 64
    used = torch.cat([torch.arange(sum(LENGTHS)) + i * layout.frames for i in range(2)])

    def compare(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        error = apart(got[used], expected[used])
        errors[name] = max(errors.get(name, 0.0), error if error == error else float("inf"))

    qkv = random_values(frames, 3 * width)
    unused = torch.ones(frames, dtype=torch.bool)
    unused[used] = False
    qkv[unused.to(device)] = float("nan")  # whatever lies in unused frames reaches no row
    compare("attention", kernels.attention(qkv, layout.tiles, 4), kernels.attention_reference(qkv.float(), layout, 4))

    x, y, time = random_values(frames, width), random_values(frames, width), random_values(width)
    norms, exact_norms = [], []
    for _ in range(2):
        norm = nn.LayerNorm(width)
        norm.weight.data, norm.bias.data = random_values(width).float().cpu(), random_values(width).float().cpu()
        exact_norms.append(norm.to(device).requires_grad_(False))
        half = nn.LayerNorm(width).to(device, dtype).requires_grad_(False)
        half.load_state_dict(norm.state_dict())
        norms.append(half)
    for which in (0, None):
        own, exact = (None, None) if which is None else (norms[which], exact_norms[which])
        got, expected = kernels.add_norm(x, y, own), kernels.add_norm_reference(x.float(), y.float(), exact)
        for a, b in zip(got, expected, strict=True):
            compare("add_norm", a, b)
    for options in ({}, {"time": time}, {"residual": y, "next_norm": 1}):
        exact_options = {k: exact_norms[1] if k == "next_norm" else v.float() for k, v in options.items()}
        own_options = {k: norms[1] if k == "next_norm" else v for k, v in options.items()}
        got = kernels.norm_mish(x, norms[0], **own_options)
        expected = kernels.norm_mish_reference(x.float(), exact_norms[0], **exact_options)
        for a, b in zip(got, expected, strict=True):
            compare("norm_mish", a, b)

    alpha = random_values(32).abs() + 0.5
    compare("snake", kernels.snake(x[:, :32].contiguous(), alpha), kernels.snake_reference(x[:, :32].float(), alpha))
    bounds = (layout.position, layout.remaining)
    residual = random_values(frames, 32)
    for taps, dilation, before in ((1, 1, 0), (3, 1, 2), (7, 1, 3), (11, 5, 25)):
        by = kernels.packed_conv(random_values(32, width, taps) / 10, random_values(32), dilation, before)
        exact_by = replace(by, weight=by.weight.float(), bias=by.bias.float())
        for options in ({}, {"residual": residual, "snake": alpha}, {"snake": alpha, "plain": False}):
            exact_options = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            got = kernels.conv(x, by, *bounds, **options, dtype=torch.float32)
            expected = kernels.conv_reference(x.float(), exact_by, *bounds, **exact_options)
            for a, b in zip(got, expected, strict=True):
                compare("conv", a, b)

    linear = nn.Linear(width, 48).to(device, dtype).requires_grad_(False)
    compare("gelu_linear", kernels.gelu_linear(x, linear), kernels.gelu_linear_reference(x.float(), linear.float()))
    return errors


def largest_error_of_networks(directory: Path) -> dict[str, float]:
    """The packed networks against the padded ones, in float32 on the CPU, by Triton's interpreter."""
    from chatterbox_vllm.s3gen.flow.packed_estimator import PackedEstimator
    from chatterbox_vllm.s3gen.vocoder.packed_hift import PackedHiFT

    flow = replace(tiny.CONFIG.flow, estimator_channels=32, estimator_head_dim=16, num_mels=16)
    # Convolutions of any taps and dilation are compared with the kernels.
    fewer = {"resblock_kernels": (3, 7), "resblock_dilations": (1, 3)}
    hift = replace(tiny.CONFIG.hift, num_mels=16, base_channels=128, **fewer)
    model = tiny.build(replace(tiny.CONFIG, flow=flow, hift=hift), directory / "s3gen.safetensors")
    generator = torch.Generator().manual_seed(0)
    errors = {"estimator": 0.0, "vocoder": 0.0}

    x = torch.randn(len(LENGTHS), max(LENGTHS), 64, generator=generator)
    moment = torch.tensor([0.3])
    time = model.estimator.time_table(moment, moment)
    expected = model.estimator(torch.cat([x, x / 2]), time, *PaddedLayout.of(LENGTHS, "cpu", streams=2).tables)
    layout = PackedLayout.of(LENGTHS, "cpu", streams=2, bucketed=True)
    flat = torch.cat([layout.pack(x), layout.pack(x / 2)])
    flat[sum(LENGTHS) : layout.frames] = float("nan")
    got = PackedEstimator(model.estimator)(flat, time, *layout.tables)
    for stream, padded in zip(got.chunk(2), expected.chunk(2), strict=True):
        for row, one in zip(layout.unpack(stream), padded, strict=True):
            errors["estimator"] = max(errors["estimator"], apart(row, one[: len(row)]))

    frames = (2, 1)  # a second of the interpreter's time each, and three
    mel = torch.randn(2, 16, 2, generator=generator)
    source = torch.randn(2, 2 * 480, generator=generator).tanh()
    for row, count in zip(mel, frames, strict=True):
        row[:, count:] = 0
    expected = model.vocoder.decode(mel, frames, source)
    roomy = nn.functional.pad(mel, (0, 1)), torch.tensor(frames), nn.functional.pad(source, (0, 480), value=0.3)
    for given in ((mel, frames, source), roomy):  # the latter as in a CUDA graph
        for wave, one, count in zip(PackedHiFT(model.vocoder).decode(*given), expected, frames, strict=True):
            errors["vocoder"] = max(errors["vocoder"], apart(wave[: count * 480], one[: count * 480]))
    return errors


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_kernels(dtype: torch.dtype, bound: float) -> None:
    errors = largest_error_of_kernels("cuda", dtype)
    assert {name: error for name, error in errors.items() if not error < bound} == {}


def test_steady_inputs_are_copied_where_they_are_others() -> None:
    graphed = GraphedFunction(lambda x, y: x.add_(y), most=3, pool=GraphPool(), steady=1)
    ones, twos = torch.ones(4, device="cuda"), torch.full((4,), 2.0, device="cuda")
    x = graphed(torch.zeros(4, device="cuda"), ones)
    assert graphed(x, ones).tolist() == [2.0] * 4  # in place, and nothing copied
    assert graphed(torch.zeros(4, device="cuda"), twos).tolist() == [2.0] * 4
    # A smaller one shares the memory of the larger one's inputs.
    assert graphed(torch.zeros(2, device="cuda"), ones[:2]).tolist() == [1.0] * 2
    assert graphed(torch.zeros(4, device="cuda"), twos).tolist() == [2.0] * 4


def test_graphs_are_bounded_and_share_their_inputs() -> None:
    calls: list[int] = []

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x @ y

    graphed = GraphedFunction(function, most=2, pool=GraphPool())
    y = torch.randn(8, 8, device="cuda")
    graphed.record(torch.zeros(6, 8, device="cuda"), y)
    for size in (6, 4, 6, 5, 4, 5):  # there is no room for 5
        x = torch.randn(size, 8, device="cuda")
        torch.testing.assert_close(graphed(x, y), x @ y)
    assert graphed.count == 2
    assert calls == [6, 6, 4, 4, 5, 5]  # before and while recording, or without a graph
    first, second = (recorded.inputs[0] for recorded in graphed._recordings.values())
    assert first.data_ptr() == second.data_ptr()


# Full size.


def reference(seed: int, tokens: int = 250) -> FlowPrompt:
    generator = torch.Generator().manual_seed(seed)
    return FlowPrompt(
        torch.randint(0, 6561, (tokens,), generator=generator),
        2 * torch.randn(2 * tokens, 80, generator=generator) - 5,
        torch.randn(192, generator=generator),
    )


def utterance(model: S3Gen, tokens: int, prompt: FlowPrompt, seed: int) -> S3GenRequest:
    ids = torch.randint(0, 6561, (tokens,), generator=torch.Generator().manual_seed(seed))
    return S3GenRequest(ids, prompt, model.draw_noise(seed, tokens, prompt))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    oracle = Path(recipe.__file__).parent
    layout = json.loads((oracle / "layouts" / "s3gen.safetensors.json").read_text())["tensors"]
    shapes = {k: (tuple(shape), d) for k, (shape, d) in layout.items() if k.startswith(("flow.", "mel2wav."))}
    path = tmp_path_factory.mktemp("s3gen") / "s3gen.safetensors"
    save_file(recipe.state_dict(shapes, "s3gen", np.load(oracle / "computed_buffers.npz")), path)
    return Weights(path)


@pytest.fixture(scope="module")
def exact(weights: Weights) -> S3Gen:
    return S3Gen.from_weights(S3GenConfig(), weights, "cuda")


@pytest.fixture(scope="module")
def requests(exact: S3Gen) -> list[S3GenRequest]:
    """32 utterances of 5 to 10 s in three voices with references of 3 to 10 s."""
    prompts = [reference(0), reference(1, 150), reference(2, 77)]
    draw = random.Random(0)
    return [utterance(exact, draw.randint(125, 250), prompts[i % 3], i) for i in range(32)]


def test_float32_batched_equals_alone(exact: S3Gen, requests: list[S3GenRequest]) -> None:
    assert exact.execution.kernels == "torch" and exact.execution.cuda_graphs
    mels, noises = exact.mel(requests), [request.noise for request in requests]
    waves = exact.waveform(mels, noises)
    for i in (0, 1, 17):
        assert apart(mels[i], exact.mel([requests[i]])[0]) < 1e-4
        # Of the same mel: the last bit of another shifts the phase, a running sum of pitch, which is why the engine
        # lets utterances in float32 go one by one.
        assert apart(waves[i], exact.waveform(mels[i : i + 1], noises[i : i + 1])[0]) < 1e-4


def test_graphs_change_nothing(weights: Weights, exact: S3Gen, requests: list[S3GenRequest]) -> None:
    eager = S3Gen.from_weights(S3GenConfig(), weights, "cuda", cuda_graphs=False)
    assert apart(eager.mel(requests[:3])[2], exact.mel(requests[:3])[2]) < 1e-5
    eager.set_precision(torch.float16, torch.float16)
    graphed = S3Gen.from_weights(S3GenConfig(), weights, "cuda", torch.float16, torch.float16)
    for some in (requests[:5], requests[5:6], requests[:5]):  # the second time from the recording
        for a, b in zip(eager.mel(some), graphed.mel(some), strict=True):
            assert apart(a, b) < 1e-3


def test_graphs_recorded_at_the_start_serve_every_batch(weights: Weights, requests: list[S3GenRequest]) -> None:
    model = S3Gen.from_weights(S3GenConfig(), weights, "cuda", torch.float16, torch.float16)
    alone = [model.mel([request])[0] for request in requests[:2]]  # recorded when they are met
    assert model.token_to_mel.graphs == 1
    assert model.record_graphs(32_768, 2500) == len([size for size in SIZES if size <= 32_768])
    draw = random.Random(1)
    for _ in range(12):
        for mel in model.mel(draw.sample(requests, draw.randint(1, 32)), 2):
            assert bool(mel.isfinite().all())
    assert model.token_to_mel.graphs == 12
    for request, mel in zip(requests, alone, strict=False):
        assert apart(model.mel([request])[0], mel) < 1e-3


def test_nothing_waits_for_the_device(weights: Weights, requests: list[S3GenRequest]) -> None:
    model = S3Gen.from_weights(S3GenConfig(), weights, "cuda", torch.float16, torch.float16)
    model.synthesize(requests)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [replace(r, noise=model.draw_noise(9, len(r.speech_tokens), r.prompt)) for r in requests]
        mels = model._generated(model._flow(drawn, 10), drawn)
        model.waveform(mels, [r.noise for r in drawn])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def in_chunks(model: S3Gen, requests: list[S3GenRequest]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Utterances in streams, a chunk of each at a time: the waveforms, and the mels' last second after each chunk."""
    states = [model.start_stream(request.prompt, seed) for seed, request in enumerate(requests)]
    waves: list[list[torch.Tensor]] = [[] for _ in requests]
    mels: list[list[torch.Tensor]] = [[] for _ in requests]
    left, turn = set(range(len(requests))), 0
    while left:
        chunks, size = {}, QUICK.size(0, turn)
        for i in sorted(left):
            tokens = requests[i].speech_tokens[states[i].rendered :]
            last = len(tokens) < size + 3
            given = tokens if last else tokens[: size + 3]
            chunks[i] = StreamChunk(states[i], given, len(given) if last else size, last)
        for (i, chunk), (wave, state) in zip(chunks.items(), model.render_chunks([*chunks.values()]), strict=True):
            waves[i].append(wave)
            mels[i].append(state.vocoder.mel)
            states[i] = state
            left -= {i} if chunk.last else set()
        turn += 1
    return [torch.cat(parts) for parts in waves], [torch.cat(parts) for parts in mels]


@torch.inference_mode()
@ieee_float32()
def in_stretches(model: S3Gen, mels: list[torch.Tensor]) -> list[torch.Tensor]:
    """Waveforms of mels that the vocoder is given in stretches, a stretch of each at a time."""
    states = [VocoderState.start(model.config.hift, model.device) for _ in mels]
    waves: list[list[torch.Tensor]] = [[] for _ in mels]
    for first, end in ((0, 32), (32, 82), (82, 1000)):
        stretches = [
            MelStretch(state, mel[first:end], end == 1000, seed)
            for seed, (state, mel) in enumerate(zip(states, mels, strict=True))
        ]
        spoken = model.chunks.vocoder(stretches)
        states = [one.state for one in spoken]
        for parts, one in zip(waves, spoken, strict=True):
            parts.append(one.wave)
    return [torch.cat(parts) for parts in waves]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_chunks_under_graphs(dtype: torch.dtype, weights: Weights, exact: S3Gen, requests: list[S3GenRequest]) -> None:
    some = requests[:20]
    eager = S3Gen.from_weights(S3GenConfig(), weights, "cuda", dtype, dtype, cuda_graphs=False)
    graphed = S3Gen.from_weights(S3GenConfig(), weights, "cuda", dtype, dtype)
    steps_alone = graphed.record_graphs(256, 256)
    recorded = graphed.record_graphs(256, 256, chunks=len(some)) - steps_alone
    assert recorded == sum(len(list(buckets.shapes(len(some)))) for buckets in (TOKENS, FRAMES))
    (_, expected), (waves, mels) = in_chunks(eager, some), in_chunks(graphed, some)
    (again,), _ = in_chunks(graphed, some[:1])
    assert graphed.chunks.record_graphs(len(some)) == recorded  # no shape came that was not told
    for request, wave in zip(some, waves, strict=True):
        assert len(wave) == 960 * len(request.speech_tokens) and bool(wave.isfinite().all()) and wave.std() > 1e-3
    assert len(again) == len(waves[0])
    # Each chunk goes on from the one before, and so do the errors.
    bound = 1e-3 if dtype == torch.float32 else 4 * MEL[dtype]
    assert max(apart(a, b) for a, b in zip(mels, expected, strict=True)) < bound

    given = [mel[:200] for mel in exact.mel(some)]
    noises = [exact.draw_noise(seed, 100, request.prompt) for seed, request in enumerate(some)]
    bound = 1e-3 if dtype == torch.float32 else WAVE[dtype]
    for wave, own, whole in zip(
        in_stretches(graphed, given), in_stretches(eager, given), exact.waveform(given, noises), strict=True
    ):
        assert apart(wave, own) < bound and apart(wave, whole) < 2 * bound


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_half_precision(
    dtype: torch.dtype, kernels: str, weights: Weights, exact: S3Gen, requests: list[S3GenRequest]
) -> None:
    half = S3Gen.from_weights(S3GenConfig(), weights, "cuda", dtype, dtype, kernels=kernels)
    assert half.execution.kernels == half.execution.vocoder_kernels == kernels
    some = requests[:8]
    mels, alone = half.mel(some), half.mel(some[1:2])[0]
    expected = exact.mel(some)
    assert max(apart(a, b) for a, b in zip(mels, expected, strict=True)) < MEL[dtype]
    # In a batch and alone differ by less than either from float32.
    assert apart(mels[1], alone) < MEL[dtype]
    noises = [request.noise for request in some]
    waves = half.waveform(expected, noises)
    assert max(apart(a, b) for a, b in zip(waves, exact.waveform(expected, noises), strict=True)) < WAVE[dtype]
    assert apart(waves[1], half.waveform(expected[1:2], noises[1:2])[0]) < WAVE[dtype]


def test_overflow_names_the_remedy(weights: Weights, requests: list[S3GenRequest]) -> None:
    model = S3Gen.from_weights(S3GenConfig(), weights, "cuda", torch.float16)
    prompt = requests[1].prompt
    loud = replace(requests[1], prompt=replace(prompt, mel=prompt.mel * 1e9))
    with pytest.raises(
        GenerationError, match="the mel of utterance 1 .* not finite in float16; use s3gen dtype bfloat"
    ):
        model.synthesize([requests[0], loud])
    assert model.synthesize([requests[0]])[0].isfinite().all()


@pytest.mark.parametrize("method", ["bnb-8bit", "bnb-4bit"])
def test_quantized_layers_under_kernels_and_graphs(method: str, tmp_path: Path) -> None:
    """The fast path with quantized weights against torch's kernels with the same weights."""
    from chatterbox_vllm.quantization.modules import state_tensors
    from chatterbox_vllm.quantization.storage import scheme_of

    flow = replace(tiny.CONFIG.flow, estimator_channels=32, estimator_head_dim=16, num_mels=16)
    config = replace(tiny.CONFIG, flow=flow, hift=replace(tiny.CONFIG.hift, num_mels=16, base_channels=128))
    path = tmp_path / "s3gen.safetensors"
    tiny.build(config, path)
    half = (torch.float16, torch.float16)
    fast = S3Gen.from_weights(config, Weights(path), "cuda", *half, quantization=scheme_of(method))
    assert fast.execution.kernels == "triton" and fast.execution.cuda_graphs
    assert {t.device.type for t in state_tensors(fast).values()} == {"cuda"}
    assert {t.dtype for t in state_tensors(fast).values()} <= {torch.uint8, torch.int8, torch.bfloat16, torch.float32}
    generator = torch.Generator().manual_seed(0)
    prompt = FlowPrompt(
        torch.randint(0, 50, (6,), generator=generator),
        torch.randn(12, 16, generator=generator),
        torch.randn(6, generator=generator),
    )
    tokens = torch.randint(0, 50, (9,), generator=generator)
    request = S3GenRequest(tokens, prompt, fast.draw_noise(0, 9, prompt))
    mels = [fast.mel([request], 3)[0] for _ in range(2)]  # recorded, then replayed
    fast.set_precision(*half, kernels="torch", cuda_graphs=False)
    plain = fast.mel([request], 3)[0]
    assert torch.equal(mels[0], mels[1]) and apart(mels[0], plain) < 1e-2
