"""`ChatterboxTurboTTS`: Turbo and Nano by the published class's name and signatures."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.links import linked_directory
from chatterbox_vllm.families.parameters import SpeechParameters
from chatterbox_vllm.families.registry import config_of
from chatterbox_vllm.families.turbo import NANO, TURBO
from chatterbox_vllm.quantization.config import AUTO
from chatterbox_vllm.setup.models import resolve_model
from chatterbox_vllm.tts import ChatterboxTTS

logger = logging.getLogger(__name__)


class ChatterboxTurboTTS(ChatterboxTTS):
    """`ChatterboxTTS` for Turbo or Nano, with the published arguments; else it is the same class.

    The published class warns of a positive `cfg_weight`, `exaggeration` or `min_p` and goes on without, and so does
    this one. Every other door (`ChatterboxTTS`, requests, command line, server) refuses them.
    """

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, device: str = "auto", nano: bool = False, *, revision: str | None = None, **options: Any
    ) -> Self:
        """Load the published model, downloading it where it is not in the cache.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N".
            nano: Nano in place of Turbo.
            revision: a commit, branch or tag of its repository; the pinned commit otherwise.
            options: as for `ChatterboxTTS.from_local`.

        Raises:
            ConfigError, CheckpointError, ModelUnavailableError, DeviceError
        """
        return cls.from_local(resolve_model(_family(nano).name, revision), device, nano, **options)

    @classmethod
    def from_pretrained_quantized(  # type: ignore[override]
        cls, device: str = "auto", nano: bool = False, *, quantization_strategy: str = AUTO, **options: Any
    ) -> Self:
        """`from_pretrained` with a ready-made choice of methods, see `ChatterboxTTS.from_pretrained_quantized`.

        Raises:
            ConfigError, CheckpointError, ModelUnavailableError, DeviceError
        """
        return super().from_pretrained_quantized(
            _family(nano).name, device, quantization_strategy=quantization_strategy, nano=nano, **options
        )

    @classmethod
    def from_local(
        cls, ckpt_dir: str | os.PathLike[str], device: str = "auto", nano: bool = False, **options: Any
    ) -> Self:
        """Load the published files in `ckpt_dir`, or a directory that `chatterbox-vllm quantize` made of them.

        Args:
            nano: Nano in place of Turbo, where the files of both lie there.
            options: as for `ChatterboxTTS.from_local`.

        Raises:
            ConfigError: the directory holds another model.
            CheckpointError, DeviceError
        """
        directory, wanted = Path(ckpt_dir), _family(nano)
        found = config_of(directory).family
        if found != wanted.name:
            if found not in (TURBO.name, NANO.name) or not (directory / wanted.t3).exists():
                raise ConfigError(
                    f"{directory} holds no {wanted.name} model but {found or 'english'}: give nano=True for Nano, "
                    "nano=False for Turbo, and take ChatterboxTTS for other models"
                )
            directory = linked_directory([directory], wanted)
        return super().from_local(directory, device, **options)

    def generate(  # type: ignore[override]
        self,
        text: str | Sequence[str],
        repetition_penalty: float | None = None,
        min_p: float | None = None,
        top_p: float | None = None,
        audio_prompt_path: str | os.PathLike[str] | None = None,
        exaggeration: float | None = None,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        norm_loudness: bool = True,
        **others: Any,
    ) -> torch.Tensor | list[Any]:
        """`ChatterboxTTS.generate`; of what these models do not have, positive values are passed over with a warning.

        Raises:
            As `ChatterboxTTS.generate`.
        """
        unused = SpeechParameters(exaggeration=exaggeration, cfg_weight=cfg_weight, min_p=min_p)
        given = [name for name in ("exaggeration", "cfg_weight", "min_p") if getattr(unused, name)]
        if given:
            logger.warning("%s has no %s: passed over", self.family.name, ", ".join(given))
        return super().generate(
            text,
            repetition_penalty=repetition_penalty,
            top_p=top_p,
            audio_prompt_path=audio_prompt_path,
            temperature=temperature,
            top_k=top_k,
            norm_loudness=None if norm_loudness or audio_prompt_path is None else False,
            **others,
        )


def _family(nano: bool) -> Family:
    return NANO if nano else TURBO
