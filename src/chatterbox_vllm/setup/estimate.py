"""How much memory a checkpoint will take, before anything is loaded: from its files' headers and a plan.

Weights and KV cache are computed to the byte. Working memory, CUDA's own share and what the allocator holds are
estimates; `measured.py` says where their figures come from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.config import COMPONENTS, STRATEGIES, QuantizationConfig
from chatterbox_vllm.quantization.files import check_origin, scheme_in_force, stored_quantization
from chatterbox_vllm.quantization.modules import QuantizedModule, quantize_layers
from chatterbox_vllm.quantization.storage import SCHEMES, scheme_of
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING
from chatterbox_vllm.s3gen.model import S3Gen
from chatterbox_vllm.setup import measured
from chatterbox_vllm.setup.models import ModelHeaders
from chatterbox_vllm.setup.tiers import TIERS, Plan, Tier
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.graph_sizes import graph_sizes
from chatterbox_vllm.t3.kv_cache import kv_cache_bytes
from chatterbox_vllm.t3.quantization.methods import AWQ_GROUP
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder

_ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # others take one
_T3_ON_HOST = ("cond_enc.", "text_emb.", "text_pos_emb.", "speech_emb.", "speech_pos_emb.")
# Convolutions that our kernels read in another form than torch does; by phases, half as large again (packed_hift.py).
_KEPT_TWICE, _PHASES_LARGER = ("vocoder.ups.", "vocoder.source_downs.", "vocoder.conv_post."), 3
# What an estimate is sure of.
_EXACT = (
    "T3 linear layers",
    "T3 embeddings and head",
    "T3 KV cache",
    "S3Gen flow, quantizable layers",
    "S3Gen, the rest",
)
_HEAD_MULTIPLE = 64  # rows that vLLM rounds a vocabulary up to


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what takes them, on the device and on the host (where the device is a CPU, all is on the host)."""

    device: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)

    @property
    def device_total(self) -> int:
        return sum(self.device.values())

    @property
    def exact(self) -> int:
        """Bytes on the device that follow from shapes alone: weights and KV cache. Less cannot do."""
        return sum(self.device[name] for name in _EXACT)

    def as_dict(self) -> dict[str, Any]:
        return {"device": self.device, "device_total": self.device_total, "host": self.host}


class QuantizationMemoryEstimator:
    """Estimates for one checkpoint. Reads headers only.

    Args:
        model: a directory, or what `model_headers` found of a model.
        half: whether T3 and S3Gen compute in half precision, as they do on CUDA; else float32, as on the CPU.
        cuda: whether the device is a CUDA device.
        s3gen_half: S3Gen alone, where its precision is another than T3's.

    Raises:
        CheckpointError, ConfigError: the files are not those of a model.
    """

    def __init__(
        self, model: Path | str | ModelHeaders, half: bool = True, cuda: bool = True, s3gen_half: bool | None = None
    ):
        headers = model if isinstance(model, ModelHeaders) else ModelHeaders.of_directory(Path(model))
        self.config = headers.config
        for part, weights in headers.files.items():
            check_origin(weights, getattr(self.config.quantized, part))
        self._t3, self._s3gen, self._voice_encoder = (headers.files[part] for part in COMPONENTS)
        self._dtype = torch.float16 if half else torch.float32
        self._s3gen_dtype = torch.float16 if (half if s3gen_half is None else s3gen_half) else torch.float32
        self._cuda = cuda

    def estimate(self, plan: Plan, longest: int | None = None) -> MemoryEstimate:
        """What a process laid out by `plan` takes. Files that are quantized already count as they are stored.

        Args:
            longest: mel frames of the longest utterance, its prompt's included, at 50 a second; by default as many as
                T3's `max_model_len` allows.
        """
        quantization = plan.quantization
        element = self._dtype.itemsize
        t3, t3_rest, conditioning = self._t3_bytes(quantization)
        flow, rest, copies = self._s3gen_bytes(quantization)
        enrolment = self._enrolment_bytes(quantization)
        cache = plan.kv_cache_bytes or kv_cache_bytes(
            self.config.t3, element, plan.max_model_len, plan.max_batch_size, "cuda" if self._cuda else "cpu"
        )
        working = _t3_working(self.config.t3, plan, element, self._t3_method(quantization))
        if self.config.t3.blocks is not None:
            working += cache // self.config.t3.num_layers  # one layer's, gathered
        longest = longest or UPSAMPLING * plan.max_model_len  # with the frames of its prompt for those of T3's
        speaking, pairs = s3gen_working(plan, self._s3gen_dtype.itemsize, longest, self._cuda)
        on_device = {
            "T3 linear layers": t3,
            "T3 embeddings and head": t3_rest,
            "T3 KV cache": cache,
            "T3 working memory": working,
            "S3Gen flow, quantizable layers": flow,
            "S3Gen, the rest": rest,
            "S3Gen working memory": speaking,
        }
        on_host = {"T3 conditioning": conditioning}
        if self._cuda:
            recorded = plan.graph_sizes or graph_sizes(plan.max_batch_size, plan.max_batched_tokens)
            graphs = len(recorded) if self.config.t3.blocks is None else 0
            # What pairs of frames take is one large block, which the next batch can use again.
            small_blocks = speaking - pairs + measured.WATERMARK
            held = min(int(measured.ALLOCATOR_SHARE * small_blocks), measured.ALLOCATOR_MOST)
            on_device |= {
                "watermark": measured.WATERMARK,
                "allocator, beside live tensors": 0 if plan.frugal else held,
                "S3Gen, convolutions as kernels read them": copies,
                "CUDA graphs of T3": graphs * measured.T3_GRAPH,
                "workspaces of CUDA's libraries": measured.FRUGAL_WORKSPACES if plan.frugal else measured.WORKSPACES,
                "CUDA context": measured.CUDA_CONTEXT,
                "CUDA libraries": measured.CUDA_LIBRARIES,
            }
        (on_host if plan.enrolment == "cpu" else on_device)["enrolment nets"] = enrolment
        return MemoryEstimate(on_device, on_host)

    def compare_strategies(self, plan: Plan | None = None) -> dict[str, MemoryEstimate]:
        """`estimate` of no quantization ("none") and of each strategy, all else as in `plan`.

        Raises:
            ConfigError: the files are quantized already.
        """
        if self.config.quantized.parts:
            raise ConfigError(
                "what is quantized already fits one strategy at most: take the model that it was made from"
            )
        plan = plan or Plan()
        configs = {"none": QuantizationConfig()} | {name: QuantizationConfig.from_strategy(name) for name in STRATEGIES}
        return {name: self.estimate(replace(plan, quantization=config)) for name, config in configs.items()}

    def tiers(self, tiers: Iterable[Tier] = TIERS) -> dict[int, MemoryEstimate]:
        """`estimate` of each tier's plan, by its GB."""
        return {tier.gb: self.estimate(tier.plan) for tier in tiers}

    def _t3_bytes(self, quantization: QuantizationConfig) -> tuple[int, int, int]:
        """Linear layers, what else is on the device, and what stays on the host."""
        backbone = backbone_of(self.config.t3)
        # What vLLM multiplies with as one matrix, by what it is called in the file, whole or in parts.
        whole = {part: name for name, parts in backbone.fused.items() for part in (name, *parts)}
        pattern = re.compile(rf"{re.escape(backbone.prefix)}(\d+)\.({'|'.join(map(re.escape, whole))})\.(\w+)")
        fused: dict[tuple[str, str], tuple[int, int]] = {}
        linear = rest = host = 0
        for key in self._t3.keys:
            shape, kind = self._t3.shape(key), self._t3.storage_type(key)
            match = pattern.fullmatch(key)
            if match and match[3] == "weight" and kind in ("F32", "F16", "BF16"):
                place, (rows, columns) = (match[1], whole[match[2]]), shape[::-1] if backbone.transposed else shape
                fused[place] = (fused.get(place, (0, 0))[0] + rows, columns)
            elif match and match[3] != "bias":  # quantized already: it stays as it is stored
                linear += math.prod(shape) * _ELEMENT_BYTES.get(kind, 1)
            elif key.startswith((backbone.prefix, *backbone.on_device)):
                if key.startswith("speech_head."):
                    shape = (-(-shape[0] // _HEAD_MULTIPLE) * _HEAD_MULTIPLE, *shape[1:])
                rest += math.prod(shape) * self._dtype.itemsize
            if key.startswith(_T3_ON_HOST):
                host += math.prod(shape) * 4
        linear += sum(_t3_linear_bytes(s, quantization.t3, quantization, self._dtype) for s in fused.values())
        return linear, rest, host

    def _t3_method(self, quantization: QuantizationConfig) -> str | None:
        stored = stored_quantization(self._t3)
        return quantization.t3 if stored is None else stored.method

    def _s3gen_bytes(self, quantization: QuantizationConfig) -> tuple[int, int, int]:
        """Quantizable layers' weights, everything else, and convolutions kept twice where kernels of our own run."""
        with torch.device("meta"):
            model = S3Gen(self.config.s3gen)
        if (scheme := scheme_in_force(quantization, "s3gen", stored_quantization(self._s3gen))) is not None:
            quantize_layers(model, model.quantizable_layers(), scheme)
        model.set_precision(self._s3gen_dtype, self._s3gen_dtype, kernels="torch")
        layers = {f"{name}.weight" for name in model.quantizable_layers()}
        matrices, rest = _matrix_and_other_bytes(model, layers)
        copies = 0
        if self._s3gen_dtype != torch.float32:
            for name, value in model.named_parameters():
                if value.dim() == 3 and name.startswith(_KEPT_TWICE):
                    copies += _PHASES_LARGER * value.numel() * value.element_size() // 2
        return matrices, rest, copies

    def _enrolment_bytes(self, quantization: QuantizationConfig) -> int:
        with torch.device("meta"):
            encoder = VoiceEncoder(self.config.voice_encoder)
        stored = stored_quantization(self._voice_encoder)
        if (scheme := scheme_in_force(quantization, "voice_encoder", stored)) is not None:
            quantize_layers(encoder, encoder.quantizable_layers(), scheme)
        nets = [key for key in self._s3gen.keys if key.startswith(("tokenizer.", "speaker_encoder."))]
        own = sum(_matrix_and_other_bytes(encoder, set()))
        return own + sum(math.prod(self._s3gen.shape(key)) * 4 for key in nets)


def _matrix_and_other_bytes(module: torch.nn.Module, layers: set[str]) -> tuple[int, int]:
    """Bytes of the weights named in `layers` and of quantized ones; bytes of everything else. All on `meta`."""
    matrices = other = 0
    for name, layer in module.named_modules():
        for own, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            key = f"{name}.{own}"
            if isinstance(layer, QuantizedModule) and value.dim() == 2:
                matrices += layer.scheme.stored_bytes((value.shape[0], value.shape[1]))
            elif key in layers:
                matrices += value.numel() * value.element_size()
            else:
                other += value.numel() * value.element_size()
    return matrices, other


def _t3_linear_bytes(
    shape: tuple[int, int], method: str | None, quantization: QuantizationConfig, dtype: torch.dtype
) -> int:
    rows, columns = shape
    if method is None:
        return rows * columns * dtype.itemsize
    if method in SCHEMES:
        return scheme_of(method, quantization.double_quant).stored_bytes(shape)
    if method == "awq":
        groups = rows * columns // AWQ_GROUP
        return rows * columns // 2 + groups * 2 + groups // 2
    return rows * columns + rows * 4  # a byte each, and a float32 scale for each row


def _t3_working(config: T3Config, plan: Plan, element: int, method: str | None) -> int:
    """The widest moment of a step: what a layer's MLP makes for every row; logits of what is drawn."""
    rows = max(plan.max_batched_tokens, plan.max_batch_size) * config.guidance_streams
    widest = backbone_of(config).widest_output(config)
    # The output, and what the activation makes of it.
    layer = rows * (widest + config.intermediate_size + 3 * config.hidden_size) * element
    drawn = plan.max_batch_size * (1 if config.blocks is None else config.blocks.block_size)
    logits = drawn * config.speech_vocab_size * (config.guidance_streams * element + 4 * 4)
    if config.blocks is not None:  # logarithms of both streams, and sums of 64 bits
        logits += drawn * config.speech_vocab_size * (config.guidance_streams * 4 + 8)
    if method == "bnb-8bit":  # two terms of every row, as 32-bit integers
        layer += 2 * rows * widest * 4
    elif method == "bnb-4bit":  # for many rows a layer is dequantized and multiplied with
        layer += widest * config.hidden_size * element
    return layer + logits


def s3gen_working(plan: Plan, element: int, longest: int, cuda: bool) -> tuple[int, int]:
    """What a batch of S3Gen needs at once, beyond its weights.

    That is the widest of encoder, estimator and vocoder. On a CUDA device the vocoder's memory comes beside the other
    two's: each records graphs of its own.

    Args:
        longest: frames of an utterance, its prompt's included.

    Returns:
        bytes, and those of them that pairs of frames take in the encoder's attention.
    """
    rows, frames = plan.s3gen_batch, min(plan.s3gen_frames, plan.s3gen_batch * longest)
    # A full batch of rows alike, or one row of the longest.
    pairs = max(rows * (frames // rows) ** 2, min(frames, longest) ** 2) * measured.ENCODER_PAIR
    encoder = frames * measured.ENCODER_FRAME + pairs
    estimator = frames * measured.ESTIMATOR_FRAME + measured.ESTIMATOR_FIXED
    flow, vocoder = max(encoder, estimator), frames * measured.VOCODER_FRAME
    whole = flow + vocoder if cuda else max(flow, vocoder)
    return whole * element // 4, pairs * element // 4
