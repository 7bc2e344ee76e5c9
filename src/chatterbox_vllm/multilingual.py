"""`ChatterboxMultilingualTTS`: the published class of that name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Self

from chatterbox_vllm.families.links import linked_directory
from chatterbox_vllm.families.multilingual import LANGUAGES
from chatterbox_vllm.families.registry import config_of, family_of, multilingual_family
from chatterbox_vllm.tts import ChatterboxTTS


class ChatterboxMultilingualTTS(ChatterboxTTS):
    """`ChatterboxTTS` of a multilingual model, called as the published class is."""

    @classmethod
    def get_supported_languages(cls) -> dict[str, str]:
        """English names by code of what the multilingual models speak; `languages` has those of the model at hand."""
        return dict(LANGUAGES)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the published order
        cls, device: str = "auto", t3_model: str | None = None, **options: Any
    ) -> Self:
        """Load a multilingual model by name, downloading it where it is not in the cache.

        Args:
            t3_model: "v2", which None is as in the published class, or "v3"; or the name of a multilingual family.
            options: as for `ChatterboxTTS.from_pretrained`.

        Raises:
            ConfigError, CheckpointError, ModelUnavailableError, DeviceError
        """
        family = multilingual_family(t3_model)
        return super().from_pretrained(family.name, device, **options)

    @classmethod
    def from_local(
        cls, ckpt_dir: str | os.PathLike[str], device: str = "auto", t3_model: str | None = None, **options: Any
    ) -> Self:
        """Load a multilingual model's files from a directory, in which other models' may lie as well.

        Args:
            t3_model: as for `from_pretrained`; of a directory that holds one multilingual model, it need not be told.
            options: as for `ChatterboxTTS.from_local`.

        Raises:
            ConfigError, CheckpointError, DeviceError
        """
        directory = Path(ckpt_dir)
        found = family_of(config_of(directory).family, directory)
        if t3_model is not None or found.only_language == "en":
            wanted = multilingual_family(t3_model)
            directory = directory if found is wanted else linked_directory([directory], wanted)
        return super().from_local(directory, device, **options)

    def generate(  # in the published order
        self,
        text: str | Sequence[str],
        language_id: str | None = None,
        audio_prompt_path: str | os.PathLike[str] | None = None,
        exaggeration: float | None = None,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        min_p: float | None = None,
        top_p: float | None = None,
        **options: Any,
    ) -> Any:
        """Speak a text, or a list of them together; see `ChatterboxTTS.generate`.

        Args:
            language_id: of the text; None tells it from the text, see `SpeechRequest.language`.
        """
        return super().generate(
            text,
            language_id=language_id,
            audio_prompt_path=audio_prompt_path,
            exaggeration=exaggeration,
            cfg_weight=cfg_weight,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            min_p=min_p,
            top_p=top_p,
            **options,
        )
