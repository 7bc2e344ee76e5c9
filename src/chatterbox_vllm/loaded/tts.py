"""A text-to-speech model in memory: how one comes to be, and what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from chatterbox_vllm.engine.engine import Engine
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND
from chatterbox_vllm.engine.scheduler import Scheduler
from chatterbox_vllm.engine.talker import TalkerStage
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.registry import config_of, multilingual_family
from chatterbox_vllm.loaded.model import LoadedModel
from chatterbox_vllm.quantization.config import AUTO, QuantizationConfig
from chatterbox_vllm.quantization.live import component_info
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.loading import in_force, load
from chatterbox_vllm.setup.models import model_and_device, resolve_model
from chatterbox_vllm.setup.planning import DType, lay_out, strategy_for
from chatterbox_vllm.setup.provenance import settings_in_force
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.files import FileVoices
from chatterbox_vllm.voices.voice import Voice


class LoadedTTS(LoadedModel[Voice, TalkerStage]):
    """What `ChatterboxTTS` is before it speaks.

    Attributes:
        conds: the voice in use, a `Voice`, or None before there is one.
        quantization: the methods in force: those of files that are quantized already, and else those asked for, after
            the steps that `fallback` took; `get_quantization_info` counts.
        settings: how the engine runs, as `settings_in_force` describes it for result files.
    """

    def __init__(
        self,
        directory: Path,
        device: torch.device,
        engine: Engine[TalkerStage],
        enroller: VoiceEnroller,
        voice: Voice | None,
    ):
        super().__init__(directory, device, engine, FileVoices(enroller))
        self.conds = voice
        self._enroller = enroller
        self.quantization = self._quantization_asked = QuantizationConfig()
        self._steps_down: tuple[str, ...] = ()
        self.settings: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        device: str = "auto",
        *,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Load a model by name, downloading it where it is not in the cache.

        Args:
            model: a family by name, "small" (comes with this package), a directory, or a hub id; None is what
                CHATTERBOX_MODEL names, or else the default family. A device name in this place is taken for
                `device`, as the published class has it first.
            device: "auto", "cpu", "cuda" or "cuda:N".
            revision: of a hub id.
            options: as for `from_local`.

        Raises:
            ConfigError, CheckpointError, ModelUnavailableError, DeviceError
        """
        model, device = model_and_device(model, device)
        return cls.from_local(resolve_model(model, revision), device, **options)

    @classmethod
    def from_pretrained_multilingual(cls, device: str = "auto", *, t3_model: str | None = None, **options: Any) -> Self:
        """`from_pretrained` of the multilingual model.

        Args:
            t3_model: "v2", which None is as in the published class, or "v3"; or the name of a multilingual family.
            options: as for `from_pretrained`.

        Raises:
            ConfigError, CheckpointError, ModelUnavailableError, DeviceError
        """
        return cls.from_pretrained(multilingual_family(t3_model).name, device, **options)

    @classmethod
    def from_pretrained_quantized(
        cls,
        model: str | os.PathLike[str] | None = None,
        device: str = "auto",
        *,
        quantization_strategy: str = AUTO,
        **options: Any,
    ) -> Self:
        """`from_pretrained` with a ready-made choice of methods.

        Args:
            quantization_strategy: "conservative" or "int8", INT8 everywhere; "mixed", NF4 for T3 and the voice encoder,
                INT8 for the flow; "aggressive" or "nf4", NF4 everywhere; "auto", what the free memory of the GPU calls
                for (see `tiers`), nothing where there is plenty, "conservative" on a CPU.
            options: as for `from_pretrained`.

        Raises:
            ConfigError, CheckpointError, ModelUnavailableError, DeviceError
        """
        model, device = model_and_device(model, device)
        if options.get("quantization") is not None:
            raise ConfigError("give either quantization_strategy or quantization: the one stands for the other")
        config = strategy_for(quantization_strategy, resolve_device(device))
        directory = resolve_model(model, options.pop("revision", None))
        if quantization_strategy == AUTO:  # leaves to itself what is quantized already
            config = config.beside(config_of(directory).quantized)
        return cls.from_local(directory, device, **options | {"quantization": config})

    @classmethod
    def from_local(
        cls,
        ckpt_dir: str | os.PathLike[str],
        device: str = "auto",
        *,
        dtype: DType = "auto",
        s3gen_dtype: DType = "auto",
        max_model_len: int | None = None,
        max_batch_size: int | None = None,
        kv_cache_bytes: int | None = None,
        gpu_memory_utilization: float | None = None,
        tier: str | int | None = None,
        cuda_graphs: bool | None = None,
        deterministic: bool = False,
        multi_step: int | None = None,
        watermark: bool = True,
        guard: bool = True,
        use_quantization: bool | None = None,
        quantization_method: str | None = None,
        quantize_s3gen: bool | str | None = None,
        quantize_voice_encoder: bool | str | None = None,
        use_bnb_quantization: bool = False,
        quantization: QuantizationConfig | None = None,
        fallback: bool = False,
        teacher_forcing: bool = False,
        stream_prompt_seconds: float | None = None,
    ) -> Self:
        """Load the published files in `ckpt_dir`, or a directory that `chatterbox-vllm quantize` made of them.

        Where a keyword of memory, quantization or streams is None, its environment variable decides (CHATTERBOX_ and
        the keyword in capitals), or else the tier, or else the default named below.

        Args:
            dtype: T3's; "auto" is bfloat16 on CUDA (float16 where a card has none) and for AWQ, else float32.
            s3gen_dtype: the flow's; "auto" is float16 on CUDA, float32 on the CPU. In half precision on CUDA the
                vocoder's convolutions are in float16.
            max_model_len: longest prompt and speech together, in positions; 2048.
            max_batch_size: most texts generated at once; 16, on a CPU 4.
            kv_cache_bytes: T3's key-value cache; None computes it from the two above.
            gpu_memory_utilization: share of the card that the process may take; what the rest of it is estimated not to
                take becomes `kv_cache_bytes`. CUDA only.
            tier: memory of the card in GB (4, 6, 8, 12, 24 or 48) or "auto", for all that `tiers.Plan` holds. The
                process then stays under the tier's budget.
            cuda_graphs: for T3's decode steps and S3Gen's estimator; None does so on CUDA. True on a CPU is an error.
            deterministic: T3's tokens do not depend on the batch in half precision either (vLLM's batch-invariant
                kernels): CUDA only, slower, and for the first model of a process.
            multi_step: decode steps of T3 for a turn of vLLM's scheduler, at most; fewer as soon as a request comes.
                More are less work for the host, which many requests at once keep busier than a GPU. None is 18 on CUDA,
                and 1 on a CPU, with `deterministic` or `teacher_forcing`, and of models that fill in blocks.
            watermark: mark the audio with PerTh, as the published class always does.
            guard: end speech that runs away from its text or leaves most of it out, and try again with other draws;
                docs/serving.md says when. Streams are ended only. Of the multilingual model, version 2, attention to
                the text also says when it may end and when it must.
            use_quantization, quantization_method, quantize_s3gen, quantize_voice_encoder, use_bnb_quantization: see
                `QuantizationConfig.from_options`; beside a tier each changes the tier's method of its part.
            quantization: the configuration itself, instead of these.
            fallback: where a component's method cannot be had on this machine, take the next that can; where the card
                has no room, try what `QuantizationConfig.steps_down` lists. Each step is logged and shown by
                `get_quantization_info`. Without, that is an error.
            teacher_forcing: for evaluation: T3 takes requests that bring the tokens that they have to say.
            stream_prompt_seconds: how much of a voice's reference clip S3Gen continues behind in a stream, 1 to 10
                seconds in steps of 0.04: the end of the clip's first 10 s. All of it by default. Less is faster, since
                each chunk is rendered behind it, and less like the voice. T3's conditioning, whole audio and
                conversions stay as they are.

        Raises:
            ConfigError, CheckpointError, DeviceError
        """
        if not isinstance(fallback, bool):
            raise ConfigError(f"fallback must be True or False, not {fallback!r}")
        settings, plan, tier = lay_out(
            Path(ckpt_dir),
            device,
            tier,
            quantization,
            dtype=dtype,
            s3gen_dtype=s3gen_dtype,
            cuda_graphs=cuda_graphs,
            deterministic=deterministic,
            multi_step=multi_step,
            watermark=watermark,
            guard=guard,
            teacher_forcing=teacher_forcing,
            stream_prompt_seconds=stream_prompt_seconds,
            use_quantization=use_quantization,
            quantization_method=quantization_method,
            quantize_s3gen=quantize_s3gen,
            quantize_voice_encoder=quantize_voice_encoder,
            use_bnb_quantization=use_bnb_quantization,
            max_model_len=max_model_len,
            max_batch_size=max_batch_size,
            kv_cache_bytes=kv_cache_bytes,
            gpu_memory_utilization=gpu_memory_utilization,
        )
        parts, steps = load(settings, plan, fallback)
        directory = settings.directory
        tts = cls(directory, settings.device, parts.engine, parts.enroller, parts.voice)
        tts.quantization = in_force(parts.plan.quantization, directory, config_of(directory))
        tts._quantization_asked, tts._steps_down = plan.quantization, steps
        tts.settings = settings_in_force(tts.t3_stage, tts.s3gen_stage, parts.plan, tts.quantization, tier)
        prompt = parts.engine.scheduler.chunk_plan.prompt
        tts.settings |= {"watermark": watermark, "guard": guard, "stream prompt s": prompt / TOKENS_PER_SECOND}
        return tts

    def get_quantization_info(self) -> dict[str, Any]:
        """What quantization is in force, from the live modules.

        Returns:
            For "t3", "s3gen" and "voice_encoder" what `ComponentInfo.as_dict` holds, or None for a component that is
            not in memory (the voice encoder is loaded at the first enrolment); under "asked" what was asked for, and
            under "steps_down" what `fallback` gave up of it, in order.
        """
        encoder, there = self._enroller.loaded_voice_encoder, not self._engine.is_shut_down
        return {
            "t3": self.t3_stage.quantization.as_dict() if there else None,
            "s3gen": component_info(self.s3gen_stage.model).as_dict() if there else None,
            "voice_encoder": None if encoder is None else component_info(encoder).as_dict(),
            "asked": str(self._quantization_asked),
            "steps_down": list(self._steps_down),
        }

    @property
    def _prompts(self) -> PromptMaker:
        return self._engine.scheduler.preparation.prompts

    def count_text_tokens(self, text: str, language: str | None = None, prepared_text: bool = False) -> int:
        """How many text tokens a text has as it stands, for accounts; see `SpeechRequest` for the arguments.

        Raises:
            ConfigError: its language cannot be told, or is none of the model's.
        """
        return self._prompts.count_text_tokens(text, language, prepared_text)

    @property
    def languages(self) -> dict[str, str]:
        """What the model speaks: English names by their codes."""
        return dict(self.family.languages)

    @property
    def language_of_english(self) -> str:
        """What English texts are spoken in where speech is measured and not listened to."""
        return self.family.language_of_english

    def check_language(self, language: str) -> str:
        """The code of a language that the model speaks, from its code, its tag with a region, or its English name.

        Raises:
            ConfigError: the model does not speak it.
        """
        return self.family.language(language)

    @property
    def defaults(self) -> dict[str, float]:
        """What is spoken with where a request names nothing else, by parameter; those that the model has."""
        return self.family.parameters_of(self._prompts.config)

    @property
    def family(self) -> Family:
        """Which kind of model it is."""
        return self._prompts.family

    @property
    def voice_kind(self) -> str | None:
        """Of which kind its voices are, see `ModelConfig.voice_kind`."""
        return self._enroller.config.voice_kind

    def lend_scheduler(self, end_use: Callable[[], None] | None = None) -> tuple[Scheduler, TalkerStage]:
        """The engine's inside, for one user at a time, who calls `return_scheduler` in the end.

        Args:
            end_use: what `shutdown` calls first, to make the user give it back.

        Raises:
            ConfigError: the model was shut down, or somebody has it.
        """
        self._engine.lend(end_use)
        return self._engine.scheduler, self._engine.talker

    def return_scheduler(self) -> None:
        """The end of `lend_scheduler`."""
        self._engine.give_back()

    @property
    def t3_stage(self) -> TalkerStage:
        """The stage that speaks tokens, to look at and to measure."""
        return self._engine.talker
