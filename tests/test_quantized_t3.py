"""T3 quantized inside vLLM's own CPU engine, at the babbler's size: storage, products, logits, tokens, memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("vllm")
pytest.importorskip("bitsandbytes")

from chatterbox_vllm.checkpoint.config import QuantizedPart, T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.request import SpeechParameters
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.layout import check_t3
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.quantization.bnb import constants, linear
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.quantization.files import stored_quantization
from chatterbox_vllm.quantization.live import ComponentInfo
from chatterbox_vllm.quantization.storage import NF4, Int8
from chatterbox_vllm.setup.quantize import quantize_model
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.awq_layout import dequantize_awq, quantize_awq
from chatterbox_vllm.t3.quantization.file import QuantizedT3, quantized_t3_layout
from chatterbox_vllm.t3.vllm.sampler import SpeechSampler
from chatterbox_vllm.t3.vllm.stage import T3Stage

CPU = torch.device("cpu")
FILE = "t3_cfg.safetensors"
TEXT = list(range(300, 320))
METHODS = ("bnb-4bit", "bnb-8bit", "awq")
# A weight's bytes by the formats' own arithmetic.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


@pytest.fixture(scope="module")
def config() -> T3Config:
    from chatterbox_vllm.families.babble import BABBLE_CONFIG

    return BABBLE_CONFIG.t3


@pytest.fixture(scope="module")
def prompt(babbler: Path, config: T3Config) -> torch.Tensor:
    builder = PromptBuilder.from_weights(config, Weights(babbler / FILE))
    generator = torch.Generator().manual_seed(1)
    speaker = torch.nn.functional.normalize(torch.randn(1, config.speaker_embedding_size, generator=generator))
    speech = torch.randint(0, 6561, (config.speech_prompt_tokens,), generator=generator)
    return builder.prompt(builder.conditioning(speaker, speech, 0.5), TEXT)


@pytest.fixture(scope="module")
def made(babbler: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The babbler quantized to disk by every method."""
    root = tmp_path_factory.mktemp("quantized")
    texts = ("The parcel left the warehouse on Thursday.", "Why would anybody paint a lighthouse green?")
    for method in METHODS:
        quantize_model(babbler, root / method, QuantizationConfig(method), texts=texts)
    return {method: root / method for method in METHODS}


@contextmanager
def talker(
    directory: Path, dtype: torch.dtype, quantization: str | None = None, device: torch.device = CPU
) -> Iterator[T3Stage]:
    config = config_of(directory).t3
    graphs = device.type == "cuda"
    options = T3Options(dtype, max_model_len=256, max_batch_size=2, cuda_graphs=graphs, quantization=quantization)
    stage = T3Stage(config, Weights(directory / FILE), options, device)
    try:
        yield stage
    finally:
        stage.close()


def speak(
    stage: T3Stage, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[int, ...], torch.Tensor]:
    """Greedy tokens, and both streams' logits that they were taken from: [n, 2, V]."""
    seen: list[torch.Tensor] = []
    apply = SpeechSampler.apply

    def recording(self: SpeechSampler, logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits[0].float().cpu())
        return apply(self, logits)

    with monkeypatch.context() as patch:
        patch.setattr(SpeechSampler, "apply", recording)
        asked = SpeechParameters(max_tokens=12, temperature=0.0, repetition_penalty=1.0)
        stage.add("one", prompt, asked.resolved(ENGLISH.defaults).sampling, seed=0)
        finished = []
        while stage.unfinished:
            finished += stage.step()
    (output,) = finished
    return output.token_ids, torch.stack(seen).unflatten(1, (2, -1))[: len(output.token_ids)]


def forced(model: PlainT3, builder: PromptBuilder, prompt: torch.Tensor, tokens: tuple[int, ...]) -> torch.Tensor:
    """The plain model's logits for the same tokens: [n, 2, V]."""
    (logits,) = model.teacher_forced([model.embed(builder, prompt, tokens[:-1])])
    return logits[:, len(prompt) - 1 :].transpose(0, 1)


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, without the ids whose logits the babbler sets to about -100 by hand."""
    got, wanted = got[..., :6561].float(), wanted[..., :6561].float()
    return float((got - wanted).norm() / wanted.norm())


def quantized_layers(stage: T3Stage) -> dict[str, nn.Module]:
    names = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    return {name: module for name, module in stage.model.named_modules() if name.rpartition(".")[2] in names}


def bytes_of(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def test_plain_torch_is_what_vllm_computes(
    babbler: Path, config: T3Config, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights(babbler / FILE)
    builder = PromptBuilder.from_weights(config, weights)
    with talker(babbler, torch.float32) as stage:
        info, seen = stage.quantization, [bytes_of(layer) for layer in quantized_layers(stage).values()]
        tokens, logits = speak(stage, prompt, monkeypatch)
    assert (info.method, info.quantized_layers, info.linear_layers) == (None, 0, 4 * config.num_layers)
    # Weights are seen, or said to be unseen, as where vLLM keeps them in its own form on a CPU.
    assert info.unseen_layers == seen.count(0)
    assert len(tokens) == 12
    assert error(forced(PlainT3(config, weights), builder, prompt, tokens), logits) < 1e-5


def compilation_key(stage: T3Stage) -> str:
    """What vLLM looks compiled code up by; nothing is compiled here."""
    return str(stage._engine.vllm_config.compute_hash())


@dataclass
class Run:
    """What one start of the engine in bfloat16 showed."""

    key: str
    layers: dict[str, int]  # bytes of each quantized layer
    info: ComponentInfo
    state: dict[str, torch.Tensor]
    tokens: tuple[int, ...]
    logits: torch.Tensor


@pytest.fixture(scope="module")
def run(made: dict[str, Path], babbler: Path, prompt: torch.Tensor) -> Callable[[str, bool], Run]:
    """A run of a method, quantized while loading or from disk; each is made once."""

    @functools.cache
    def start(method: str, from_disk: bool) -> Run:
        with (
            pytest.MonkeyPatch.context() as patch,
            talker(made[method] if from_disk else babbler, torch.bfloat16, None if from_disk else method) as stage,
        ):
            assert stage.options.quantization == method
            layers = {name: bytes_of(layer) for name, layer in quantized_layers(stage).items()}
            tables = {buffer.data_ptr() for layer in quantized_layers(stage).values() for buffer in layer.buffers()}
            assert len(tables) == (method == "bnb-4bit")  # one table of scales for all layers
            state = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
            return Run(compilation_key(stage), layers, stage.quantization, state, *speak(stage, prompt, patch))

    return start


@pytest.mark.parametrize("method", METHODS)
def test_bytes_on_the_live_modules(run: Callable[[str, bool], Run], config: T3Config, method: str) -> None:
    found = run(method, method == "awq")
    assert len(found.layers) == 4 * config.num_layers
    width, mlp = config.hidden_size, config.intermediate_size
    shapes = {"qkv": (3 * width, width), "o": (width, width), "gate_up": (2 * mlp, width), "down": (width, mlp)}
    for name, count in found.layers.items():
        out, inn = shapes[name.rpartition(".")[2].removesuffix("_proj")]
        theory = {
            "bnb-4bit": out * inn * NF4_BYTES + 4,
            "bnb-8bit": out * inn + 2 * out,
            "awq": out * inn * (0.5 + (2 + 2) / 128),  # a scale and an offset for each group, in bfloat16
        }[method]
        assert count == pytest.approx(theory, rel=0.001)
    info, weights = found.info, config.num_layers * sum(out * inn for out, inn in shapes.values())
    assert (info.method, info.quantized_layers, info.linear_layers) == (method, len(found.layers), len(found.layers))
    assert (info.quantized_weights, info.unseen_layers) == (weights, 0)
    # The table of NF4's scales of scales, 256 floats, is there once.
    assert info.quantized_bytes == sum(found.layers.values()) + (1024 if method == "bnb-4bit" else 0)
    # What must stay in 16 bits.
    for name in ("lm_head.weight", "model.speech_emb.weight", "model.speech_pos_emb.weight", "model.norm.weight"):
        assert found.state[name].dtype == torch.bfloat16


@pytest.mark.parametrize(("method", "noise"), [("bnb-4bit", 0.015), ("bnb-8bit", 0.012), ("awq", 0.015)])
def test_logits_are_those_of_the_dequantized_weights(
    run: Callable[[str, bool], Run],
    made: dict[str, Path],
    babbler: Path,
    config: T3Config,
    prompt: torch.Tensor,
    method: str,
    noise: float,
) -> None:
    found, stored = run(method, method == "awq"), Weights(made[method] / FILE)
    assert len(found.tokens) == 12 and max(found.tokens) <= config.stop_speech_token
    part = stored_quantization(stored)
    assert part is not None
    builder = PromptBuilder.from_weights(config, stored)
    near = error(found.logits, forced(QuantizedT3(config, stored, part), builder, prompt, found.tokens))
    far = error(found.logits, forced(PlainT3(config, Weights(babbler / FILE)), builder, prompt, found.tokens))
    # Half precision's noise, while the unquantized weights are further off.
    assert near < noise
    assert far > (near if method == "bnb-8bit" else 5 * near)


@pytest.mark.parametrize("method", ["bnb-4bit", "bnb-8bit"])
def test_from_disk_is_what_quantizing_while_loading_gives(run: Callable[[str, bool], Run], method: str) -> None:
    loading, disk = run(method, False), run(method, True)
    assert loading.state.keys() == disk.state.keys()
    assert [name for name in disk.state if not torch.equal(loading.state[name], disk.state[name])] == []
    assert loading.tokens == disk.tokens and torch.equal(loading.logits, disk.logits)


def test_a_second_start_finds_what_the_first_compiled(run: Callable[[str, bool], Run], babbler: Path) -> None:
    first, other = run("bnb-4bit", False), run("bnb-8bit", False)
    with talker(babbler, torch.bfloat16, "bnb-4bit") as stage:
        assert first.key == compilation_key(stage) != other.key


def test_other_contents_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    """As `test_quantized_files` has it for the other methods."""
    copy = tmp_path / "awq"
    shutil.copytree(made["awq"], copy)
    config = config_of(copy)
    check_t3(config, Weights(copy / FILE))
    contents = bytearray((copy / FILE).read_bytes())
    contents[-1] ^= 1
    (copy / FILE).write_bytes(contents)
    with pytest.raises(CheckpointError, match=f"{FILE}: its tensors have the fingerprint"):
        check_t3(config, Weights(copy / FILE))


def test_never_more_than_a_layer_in_full(
    babbler: Path, made: dict[str, Path], config: T3Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    changes: list[tuple[int, int]] = []  # when, and by how many bytes
    load = BaseModelLoader.load_model

    def watched(*args: object, **kwargs: object) -> nn.Module:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model = load(*args, **kwargs)
        events = profile.profiler.kineto_results.events()
        changes.extend((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        return model

    monkeypatch.setattr(BaseModelLoader, "load_model", watched)
    with talker(babbler, torch.float32, "bnb-4bit") as stage:
        # The stored weights do not depend on what the engine computes in: these are the file's, the others' bfloat16.
        for name, parameter in stage.model.model.layers[2].mlp.down_proj.named_parameters():
            assert torch.equal(parameter, Weights(made["bnb-4bit"] / FILE).get(f"tfmr.layers.2.mlp.down_proj.{name}"))
    # The mapped file counts as memory here, and is none.
    mapped = (babbler / FILE).stat().st_size
    held = list(itertools.accumulate(n for _, n in sorted(changes) if not 0.99 < abs(n) / mapped < 1.01))
    largest_layer = 4 * 2 * config.intermediate_size * config.hidden_size
    all_layers = 4 * config.num_layers * (4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size)
    # The layer, its copy inside vLLM, and what its quantization makes on the way.
    assert max(held) - held[-1] < 4 * largest_layer < all_layers / 2


@pytest.mark.parametrize("how", [NF4(), NF4(double_quant=False), Int8()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products(how: NF4 | Int8, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(192, 256, generator=generator) / 16
    x = torch.randn(5, 256, generator=generator).to(dtype)
    tensors = how.quantize(weight)
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == how.layout((192, 256))
    meant = how.dequantize(tensors, (192, 256), torch.float32)
    tensors |= constants(how, weight.device)
    loss = error(meant, weight)
    # Of Gaussian weights: NF4's 16 levels in blocks of 64, and 255 levels a row.
    assert 0.08 < loss < 0.10 if isinstance(how, NF4) else 0.004 < loss < 0.008
    out = linear(how, x, tensors, 192)
    assert out.dtype == dtype
    # INT8 takes the input in 15 bits.
    noise = {torch.float32: 5e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
    assert error(out, x.float() @ meant.t()) < noise
    # A channel a thousand times as large as the others, as trained models have them, does not drown these.
    x[:, 7] = 1000
    wanted = x.float() @ meant.t() - 1000 * meant[:, 7]
    if dtype == torch.float32:
        assert error(linear(how, x, tensors, 192) - 1000 * meant[:, 7], wanted) < (
            0.03 if isinstance(how, Int8) else 1e-3
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_awq_product(dtype: torch.dtype) -> None:
    """On a CPU, in every dtype that a model may be loaded in, for prompts and single tokens."""
    from chatterbox_vllm.t3.vllm.awq import CpuAwqMethod

    generator = torch.Generator().manual_seed(0)
    stored = quantize_awq(torch.randn(192, 256, generator=generator) / 16)
    method, layer = CpuAwqMethod(None), nn.Module()
    for name, tensor in stored.items():
        value = tensor.to(dtype) if name == "scales" else tensor
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
    assert method.in_force(layer) == (None, None)
    for _ in range(2):  # vLLM calls it twice
        method.process_weights_after_loading(layer)
    assert method.in_force(layer)[0] == "awq" and set(dict(layer.named_parameters())) == {
        "packed",
        "scales_and_offsets",
    }
    for rows in (1, 2, 5, 70):
        x = torch.randn(rows, 256, generator=generator).to(dtype)
        out = method.apply(layer, x, torch.ones(192, dtype=dtype))
        assert out.dtype == dtype and out.shape == (rows, 192)
        assert error(out.float() - 1, x.float() @ dequantize_awq(stored).t()) < 0.01


@pytest.mark.parametrize("how", [NF4(), Int8()], ids=str)
def test_layers_compile_without_a_break(how: NF4 | Int8) -> None:
    from chatterbox_vllm.t3.vllm.bitsandbytes import BnbLinearMethod

    method, layer = BnbLinearMethod(how, stored=True), nn.Module()
    method.create_weights(layer, 256, [128, 64], 256, 192, torch.bfloat16)
    weight = torch.randn(192, 256, generator=torch.Generator().manual_seed(0))
    for name, tensor in how.quantize(weight).items():
        parameter = layer.get_parameter(name)
        parameter.weight_loader(parameter, tensor)
    assert method.in_force(layer) == (how.method, "bitsandbytes")
    method.process_weights_after_loading(layer)
    torch._dynamo.reset()  # its limit of recompilations counts across tests
    compiled = torch.compile(lambda x: method.apply(layer, x), fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.inference_mode():
        for rows in (2, 5, 9):
            x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(rows)).bfloat16()
            out = compiled(x)
            assert torch.equal(out, method.apply(layer, x))
            assert error(out, x.float() @ weight.t()) < 0.12


def test_what_cannot_be_is_refused(babbler: Path, made: dict[str, Path], config: T3Config) -> None:
    weights = Weights(babbler / FILE)

    def start(quantization: str, source: Weights = weights, dtype: torch.dtype = torch.bfloat16) -> None:
        T3Stage(config, source, T3Options(dtype, max_model_len=256, quantization=quantization), CPU)

    with pytest.raises(ConfigError, match=r"'int3'.*|bnb-4bit"):
        T3Options(torch.float32, quantization="int3")
    for method in ("awq", "fp8"):
        with pytest.raises(ConfigError, match=f"{method}.*float32.*bfloat16"):
            T3Options(torch.float32, quantization=method)
    with pytest.raises(ConfigError, match="deterministic"):
        T3Options(torch.bfloat16, quantization="bnb-8bit", deterministic=True)
    with pytest.raises(ConfigError, match=r"awq.*chatterbox-vllm quantize MODEL --method awq"):
        start("awq")
    with pytest.raises(ConfigError, match="fp8 needs a CUDA device"):
        start("fp8")
    with pytest.raises(ConfigError, match="quantized as awq already"):
        start("bnb-4bit", Weights(made["awq"] / FILE))
    # A method that the file brings and the dtype cannot.
    with pytest.raises(ConfigError, match="awq has no kernel for float32"):
        T3Stage(config, Weights(made["awq"] / FILE), T3Options(torch.float32, max_model_len=256), CPU)
    with pytest.raises(ConfigError, match="multiple of 64"):
        quantized_t3_layout(dataclasses.replace(config, intermediate_size=96), QuantizedPart("bnb-4bit"))


def test_without_the_library(babbler: Path, config: T3Config, no_bitsandbytes: None) -> None:
    with pytest.raises(ConfigError, match="pip install .bitsandbytes>="):
        T3Stage(config, Weights(babbler / FILE), T3Options(torch.float32, quantization="bnb-8bit"), CPU)
