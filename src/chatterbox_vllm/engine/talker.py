"""The engine's side of T3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.t3.vllm.stage import T3Output


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
    ) -> None: ...
    def step(self) -> list[T3Output]: ...
    def abort(self, request_ids: Sequence[str]) -> None: ...
    def close(self) -> None: ...


class NoTalker:
    """Stands where only S3Gen is loaded: it is never given anything."""

    def add(
        self,
        request_id: str,
        prompt: torch.Tensor,
        sampling: Sampling,
        seed: int,
        uniforms: Sequence[float] | None = None,
        *,
        told_every: int | None = None,
    ) -> None:
        raise ConfigError("only S3Gen is loaded here, and nobody to speak")

    def step(self) -> list[T3Output]:
        return []

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def close(self) -> None: ...
