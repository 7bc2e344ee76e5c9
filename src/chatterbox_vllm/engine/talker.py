"""The engine's side of T3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.quantization.live import ComponentInfo
from chatterbox_vllm.t3.options import SharedPrefix, T3Options, T3Output
from chatterbox_vllm.t3.sampling import Sampling

if TYPE_CHECKING:
    from chatterbox_vllm.t3.vllm.forcing import ForcedTokens  # imports vllm


class Talker(Protocol):
    """What the scheduler needs of its T3 stage."""

    def add(
        self,
        request_id: str,
        prompt: torch.Tensor,
        sampling: Sampling,
        seed: int,
        uniforms: Sequence[float] | None = None,
        *,
        told_every: int | None = None,
        awaited: int = 0,
        end_held_for: int | None = None,
        shared_prefix: SharedPrefix | None = None,
    ) -> None: ...
    def step(self, should_yield: Callable[[], bool] | None = None) -> list[T3Output]: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...
    def close(self) -> None: ...


class TalkerStage(Talker, Protocol):
    """What its owner and those who look at it need beside. What each does is said in `T3Stage` and `BlockStage`."""

    @property
    def config(self) -> T3Config: ...
    @property
    def options(self) -> T3Options: ...
    @property
    def model(self) -> torch.nn.Module: ...
    @property
    def quantization(self) -> ComponentInfo: ...
    @property
    def kv_cache_bytes(self) -> int: ...
    @property
    def kv_blocks_in_use(self) -> int: ...
    @property
    def unfinished(self) -> bool: ...
    def add(
        self,
        request_id: str,
        prompt: torch.Tensor,
        sampling: Sampling,
        seed: int,
        uniforms: Sequence[float] | None = None,
        forced: ForcedTokens | None = None,
        told_every: int | None = None,
        awaited: int = 0,
        end_held_for: int | None = None,
        shared_prefix: SharedPrefix | None = None,
    ) -> None: ...
    def end_with_process(self) -> None: ...


class NoTalker:
    """Stands where only S3Gen is loaded: it is never given anything."""

    def add(self, *_: object, **__: object) -> None:
        raise ConfigError("only S3Gen is loaded here, and nobody to speak")

    def step(self, should_yield: Callable[[], bool] | None = None) -> list[T3Output]:
        return []

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def close(self) -> None: ...
