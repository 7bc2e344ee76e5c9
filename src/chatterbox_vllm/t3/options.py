"""What a T3 stage of any kind is asked for, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.t3.quantization.methods import check_t3_quantization


@dataclass(frozen=True)
class T3Options:
    """How the T3 engine runs.

    Attributes:
        dtype: weights, activations and KV cache.
        max_model_len: longest sequence, prompt and speech tokens together.
        max_batch_size: most requests generated at once.
        kv_cache_bytes: memory for keys and values; None takes what `max_batch_size` sequences of
            `kv_cache.typical_positions`, or one of `max_model_len`, need; where more is, vLLM makes requests wait.
        cuda_graphs: capture decode steps; CUDA only.
        max_batched_tokens: most rows that one step takes in (prompts are split to fit).
        deterministic: tokens that do not depend on the batch in half precision either; CUDA only, and slower.
        quantization: of the linear layers, one of `T3_METHODS` in `t3/quantization/methods.py`; None leaves a plain
            checkpoint as it is and takes a quantized one's own. Embeddings and the head stay in `dtype`.
        double_quant: quantize bnb-4bit's scales too, where it is done while loading.
        graph_sizes: rows that CUDA graphs are recorded for; None takes those of `t3.graph_sizes`.
        teacher_forcing: requests may bring the tokens that they have to say; for evaluation, not for service.
        multi_step: decode steps for a turn of vLLM's scheduler, at most.
        follow_text: requests may have their attention to the text followed, see `T3Stage.add`; of models with
            `T3Config.alignment_heads`.
    """

    dtype: torch.dtype
    max_model_len: int = 2048
    max_batch_size: int = 16
    kv_cache_bytes: int | None = None
    cuda_graphs: bool = True
    max_batched_tokens: int = 2048
    deterministic: bool = False
    quantization: str | None = None
    double_quant: bool = True
    graph_sizes: tuple[int, ...] | None = None
    teacher_forcing: bool = False
    follow_text: bool = False
    multi_step: int = 1

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_batch_size", "max_batched_tokens", "multi_step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, not {value!r}")
        if self.kv_cache_bytes is not None and (type(self.kv_cache_bytes) is not int or self.kv_cache_bytes < 1):
            raise ConfigError(f"kv_cache_bytes must be a positive number of bytes, not {self.kv_cache_bytes!r}")
        if self.multi_step > 1 and self.teacher_forcing:
            raise ConfigError("tokens are forced one step at a time; leave multi_step at 1 with teacher_forcing")
        check_t3_quantization(self.quantization, self.dtype, self.deterministic)


@dataclass(frozen=True)
class SharedPrefix:
    """Rows that a prompt begins with, and others perhaps, too: a voice's.

    Attributes:
        name: stands for what is in the rows, for one model.
        rows: how many there are.
    """

    name: str
    rows: int


@dataclass(frozen=True)
class T3Output:
    """A finished generation: tokens as drawn (end-of-speech included where it came).

    Of a request that is told as it is drawn: the tokens since the last time, and no reason before it has finished.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"] | None
