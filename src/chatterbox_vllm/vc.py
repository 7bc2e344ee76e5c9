"""`ChatterboxVC`: voice conversion, used as the published class is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from typing_extensions import Self

from chatterbox_vllm.engine.conversion import ConversionRequest
from chatterbox_vllm.engine.request import AudioChunk, SpeechParameters, SpeechResult
from chatterbox_vllm.engine.talker import NoTalker
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.loaded.model import LoadedModel
from chatterbox_vllm.quantization.live import component_info
from chatterbox_vllm.setup.converting import Converter, conversion_plan, load_converter
from chatterbox_vllm.setup.models import model_and_device, resolve_converter
from chatterbox_vllm.setup.planning import DType, make_settings
from chatterbox_vllm.voices.files import FileVoices
from chatterbox_vllm.voices.hearing import Target

Audio = str | os.PathLike[str] | bytes


class ChatterboxVC(LoadedModel[Target, NoTalker]):
    """Says recordings in another voice, as they were spoken. S3Gen alone is loaded: no T3, and no vLLM.

    Make one with `from_pretrained` or `from_local`; close it with `shutdown` or a `with` block. A recording of up to
    40 s goes through S3Gen in one pass, as published. A longer one is rendered in chunks of up to 20 s that join at its
    quietest places, each in sight of the one before it, so that S3Gen's memory does not grow with the recording.

    Attributes:
        target: the speaker in use, or None before there is one.
        others: see `LoadedModel`.
    """

    def __init__(self, directory: Path, device: torch.device, converter: Converter):
        super().__init__(directory, device, converter.engine, FileVoices(converter.hearing))
        self.target = converter.target

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        device: str = "auto",
        *,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load S3Gen of a model by name, downloading its file where it is not in the cache.

        Args:
            model, device, revision: as for `ChatterboxTTS.from_pretrained`; any model that has S3Gen serves.
            options: as for `from_local`.

        Raises:
            ConfigError, CheckpointError, ModelUnavailableError, DeviceError
        """
        model, device = model_and_device(model, device)
        return cls.from_local(resolve_converter(model, revision), device, **options)

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | os.PathLike[str],
        device: str = "auto",
        *,
        s3gen_dtype: DType = "auto",
        tier: str | int | None = None,
        quantize_s3gen: bool | str | None = None,
        max_batch_size: int | None = None,
        cuda_graphs: bool | None = None,
        watermark: bool = True,
    ) -> Self:
        """Load S3Gen's file in `ckpt_dir`, published or quantized; other files of the model need not be there.

        Args:
            s3gen_dtype: "auto" is float16 on CUDA, float32 on the CPU.
            tier: S3Gen's part of it: see `ChatterboxTTS.from_local`.
            quantize_s3gen: "bnb-4bit" or "bnb-8bit"; True is "bnb-4bit".
            max_batch_size: most recordings converted at once.
            cuda_graphs: for the estimator; None does so on CUDA.
            watermark: mark the audio with PerTh, as the published class always does.

        Raises:
            ConfigError, CheckpointError, DeviceError
        """
        settings = make_settings(
            Path(ckpt_dir),
            device,
            dtype="auto",
            s3gen_dtype=s3gen_dtype,
            cuda_graphs=cuda_graphs,
            deterministic=False,
            watermark=watermark,
            with_t3=False,
        )
        plan = conversion_plan(settings, tier, quantize_s3gen, max_batch_size)
        return cls(settings.directory, settings.device, load_converter(settings, plan))

    def set_target_voice(self, wav_fpath: str | os.PathLike[str]) -> None:
        """Make the speaker of a clip, or of a saved voice, the one in use, for this and later calls.

        Args:
            wav_fpath: as for `ChatterboxTTS.prepare_conditionals`; a saved voice of any model with these speech tokens.

        Raises:
            AudioError: the file cannot be decoded or used.
            CheckpointError: it is a saved voice that is damaged or made for another model.
        """
        self.target = self.target_of(wav_fpath)

    def target_of(self, path: str | os.PathLike[str]) -> Target:
        """The speaker of a clip or of a saved voice; read once for as long as the file does not change."""
        return self._files.voice(Path(path))

    @overload
    def generate(self, audio: Audio, *args: Any, **parameters: Any) -> torch.Tensor: ...
    @overload
    def generate(self, audio: Sequence[Audio], *args: Any, **parameters: Any) -> list[Any]: ...
    def generate(
        self,
        audio: Audio | Sequence[Audio],
        target_voice_path: str | os.PathLike[str] | None = None,
        *,
        diffusion_steps: int | None = None,
        seed: int | None = None,
        return_exceptions: bool = False,
        progress: bool | None = None,
    ) -> torch.Tensor | list[Any]:
        """Say a recording in the voice in use, or several together.

        Args:
            audio: a path or the bytes of an audio file, of any format and length, or a list of such.
            target_voice_path: a clip of the voice, which stays the one in use for later calls, as published.
            diffusion_steps: solver steps from noise to mel, 1 to 100; the model's own by default.
            seed: of all randomness; recording i of a list gets seed + i.
            return_exceptions, progress: as for `ChatterboxTTS.generate`.

        Returns:
            float32 audio (1, n) on the CPU at `sr`, as long as the recording but for the part of a token; for a list, a
            list of them (or errors, see above) in its order.

        Raises:
            ConfigError: a parameter out of range, or there is no voice.
            AudioError: the recording or the clip cannot be used.
            GenerationError: the recording could not be converted.
            BatchError: some recordings of a list failed; it holds the audio of all others.
        """
        parameters = SpeechParameters(diffusion_steps=diffusion_steps, seed=seed)
        if target_voice_path is not None:
            self.set_target_voice(target_voice_path)
        several = isinstance(audio, (list, tuple))
        recordings: list[Any] = list(audio) if several else [audio]  # type: ignore[arg-type]
        speaker = self.speaker

        def request(i: int) -> ConversionRequest:
            return ConversionRequest(recordings[i], speaker, parameters.of_item(i))

        return self._generate(request, len(recordings), several, return_exceptions, progress, "recording")

    def generate_stream(
        self,
        audio: Audio,
        target_voice_path: str | os.PathLike[str] | None = None,
        *,
        diffusion_steps: int | None = None,
        seed: int | None = None,
    ) -> Iterator[AudioChunk | SpeechResult]:
        """Convert a recording of any length; yield its audio in chunks while the rest is still being rendered.

        The last event is the recording's `SpeechResult`, which holds no audio. The audio is about that of `generate`
        from the same seed, and as many samples. Closing the iterator ends the work.

        Args, raises: as `generate` for one recording.
        """
        if target_voice_path is not None:
            self.set_target_voice(target_voice_path)
        parameters = SpeechParameters(diffusion_steps=diffusion_steps, seed=seed)
        return self.stream(ConversionRequest(audio, self.speaker, parameters))

    @property
    def speaker(self) -> Target:
        """The speaker in use.

        Raises:
            ConfigError: there is none.
        """
        if self.target is None:
            raise ConfigError("there is no voice to convert to: pass target_voice_path or call set_target_voice first")
        return self.target

    def get_quantization_info(self) -> dict[str, Any]:
        """What `ComponentInfo.as_dict` says of S3Gen's live modules, under "s3gen"; None after `shutdown`."""
        there = not self._engine.is_shut_down
        return {"s3gen": component_info(self.s3gen_stage.model).as_dict() if there else None}
