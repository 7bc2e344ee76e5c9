"""The models that this version knows: what each is, what of it is on this machine, and whether it fits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chatterbox_vllm.checkpoint.files import Header, Weights
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.layout import checkpoint_shapes
from chatterbox_vllm.families.registry import FAMILIES, family_of
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.setup.models import SMALL, ModelHeaders, local_directory
from chatterbox_vllm.setup.preflight import free_bytes
from chatterbox_vllm.setup.tiers import CPU_PLAN, TIERS

_FLOAT32 = 4


@dataclass(frozen=True)
class KnownModel:
    """One model.

    Attributes:
        name: as `--model` takes it.
        languages: English names by their codes.
        licence: of the weights.
        repository: hub id; None for the one that comes with this package.
        bytes: of its files: on this machine, or of a download as its dimensions say.
        directory: of its files on this machine; None where they would have to be downloaded.
        device: that it would run on.
        free_bytes: there.
        tiers: GB of the cards whose tiers hold it.
        needed_bytes: that it is expected to take there: in the largest tier that is free, or on a CPU without a tier.
            None where no tier is free.
        fits: whether that is free.
    """

    name: str
    languages: dict[str, str]
    licence: str
    repository: str | None
    bytes: int
    directory: Path | None
    device: str
    free_bytes: int
    tiers: tuple[int, ...]
    needed_bytes: int | None
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return found | {"directory": None if self.directory is None else str(self.directory), "tiers": [*self.tiers]}


def known_models() -> list[KnownModel]:
    """The published families in the order of the registry, and the small model. Asks no network, loads nothing.

    Raises:
        CheckpointError, ConfigError: files on this machine cannot be read.
    """
    device = resolve_device("auto", for_vllm=False)
    free = free_bytes(device)
    published = [_known(name, family, device, free) for name, family in FAMILIES.items()]
    return [*published, _known(SMALL, None, device, free)]


def _known(name: str, family: Family | None, device: torch.device, free: int) -> KnownModel:
    directory, repository = local_directory(name), None if family is None else family.repository
    headers = _published(family) if directory is None and family is not None else None
    if headers is None:
        assert directory is not None  # the small model is always there
        headers = ModelHeaders.of_directory(directory)
    family = family or family_of(headers.config.family)
    estimator = QuantizationMemoryEstimator(headers, half=device.type == "cuda", cuda=device.type == "cuda")
    on_card = QuantizationMemoryEstimator(headers)
    needs = {
        tier.gb: on_card.estimate(
            replace(tier.plan, quantization=tier.plan.quantization.beside(headers.config.quantized))
        ).device_total
        for tier in TIERS
    }
    tiers = tuple(tier.gb for tier in TIERS if needs[tier.gb] <= tier.budget)
    needed: int | None
    if device.type == "cuda":
        needed = next((needs[t.gb] for t in reversed(TIERS) if t.gb in tiers and t.budget <= free), None)
    else:
        estimated = estimator.estimate(CPU_PLAN)
        needed = estimated.device_total + sum(estimated.host.values())
    return KnownModel(
        name=name,
        languages=dict(family.languages),
        licence=family.licence,
        repository=repository,
        bytes=_bytes(headers) if directory is None else _bytes_of(directory),
        directory=directory,
        device=str(device),
        free_bytes=free,
        tiers=tiers,
        needed_bytes=needed,
        fits=needed is not None and needed <= free,
    )


def _published(family: Family) -> ModelHeaders:
    """What a family's files will hold, from its dimensions alone: they are published in float32."""
    shapes = checkpoint_shapes(family.config)
    files = {}
    for part, tensors in shapes.items():
        header = Header({key: (shape, "F32") for key, shape in tensors.items()}, {})
        files[part] = Weights(Path(family.repository) / getattr(family, part), header)
    return ModelHeaders(Path(family.repository), family.config, files)


def _bytes(headers: ModelHeaders) -> int:
    tensors = (weights.shape(key) for weights in headers.files.values() for key in weights.keys)
    return sum(math.prod(shape) for shape in tensors) * _FLOAT32


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
