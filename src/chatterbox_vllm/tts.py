"""`ChatterboxTTS`: the public class, used as the published one is."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import torch
from typing_extensions import Self

from chatterbox_vllm.engine.chunks import SAMPLE_RATE
from chatterbox_vllm.engine.conversion import Request
from chatterbox_vllm.engine.engine import Engine
from chatterbox_vllm.engine.progress import with_progress
from chatterbox_vllm.engine.request import MAX_SEED, AudioChunk, SpeechParameters, SpeechRequest, SpeechResult
from chatterbox_vllm.engine.s3gen_stage import S3GenStage
from chatterbox_vllm.engine.scheduler import Scheduler
from chatterbox_vllm.engine.talker import TalkerStage
from chatterbox_vllm.errors import BatchError, ConfigError
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.registry import config_of, multilingual_family
from chatterbox_vllm.families.voices import voice_of_model, voices_of
from chatterbox_vllm.quantization.config import AUTO, QuantizationConfig
from chatterbox_vllm.quantization.live import component_info
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.loading import in_force, load
from chatterbox_vllm.setup.models import model_and_device, resolve_model
from chatterbox_vllm.setup.planning import DType, lay_out, strategy_for
from chatterbox_vllm.setup.provenance import settings_in_force
from chatterbox_vllm.text.clean import Cleaning
from chatterbox_vllm.text.pauses import DEFAULT_PAUSES, Pauses
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.files import FileVoices
from chatterbox_vllm.voices.voice import Voice


class ChatterboxTTS:
    """Chatterbox on vLLM. Make one with `from_pretrained` or `from_local`; close it with `shutdown` or a `with` block.

    Attributes:
        sr: sample rate of the audio, 24000 Hz.
        conds: the voice in use, a `Voice`, or None before there is one.
        quantization: the methods in force: those of files that are quantized already, and else those asked for, after
            the steps that `fallback` took; `get_quantization_info` counts.
        settings: how the engine runs, as `settings_in_force` describes it for result files.
    """

    sr = SAMPLE_RATE

    def __init__(
        self,
        directory: Path,
        device: torch.device,
        engine: Engine[TalkerStage],
        enroller: VoiceEnroller,
        voice: Voice | None,
    ):
        self.directory = directory
        self.device = device
        self.conds = voice
        self._engine = engine
        self._enroller = enroller
        self.quantization = self._quantization_asked = QuantizationConfig()
        self._steps_down: tuple[str, ...] = ()
        self.settings: dict[str, Any] = {}
        self._files = FileVoices(enroller)

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
    ) -> Self:
        """Load the published files in `ckpt_dir`, or a directory that `chatterbox-vllm quantize` made of them.

        Where a keyword of memory or quantization is None, its environment variable decides (CHATTERBOX_ and the
        keyword in capitals), or else the tier, or else the default named below.

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
            watermark=watermark,
            guard=guard,
            teacher_forcing=teacher_forcing,
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
        tts.settings |= {"watermark": watermark, "guard": guard}
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

    def prepare_conditionals(
        self, wav_fpath: str | os.PathLike[str], exaggeration: float | None = None, norm_loudness: bool = True
    ) -> None:
        """Make the speaker of a clip, or a saved voice, the voice in use, for this and later calls.

        Args:
            wav_fpath: audio of any common format, rate and channel count, 0.5 s to 10 minutes; or a file that
                `Voice.save` wrote.
            exaggeration: accepted as the published method does and checked; emotion is a parameter of `generate`.
            norm_loudness: bring a clip to the loudness that Turbo's and Nano's voices have; other models take clips as
                they are.

        Raises:
            AudioError: the file cannot be decoded or used.
            CheckpointError: it is a saved voice that is damaged or made for another model.
        """
        if exaggeration is not None:
            SpeechParameters(exaggeration=exaggeration)
        self.conds = self.enrol(wav_fpath, norm_loudness)

    def enrol(self, path: str | os.PathLike[str], norm_loudness: bool = True) -> Voice:
        """The voice of a clip or of a saved voice; read once for as long as the file does not change.

        Args:
            norm_loudness: as for `prepare_conditionals`.
        """
        return self._files.voice(Path(path), norm_loudness)

    def enrol_clip(self, clip: bytes) -> Voice:
        """The voice of a clip in memory: the bytes of an audio file. Equal bytes are enrolled once.

        Raises:
            AudioError: it cannot be decoded or used.
        """
        return self._files.voice_of_clip(clip)

    def count_text_tokens(self, text: str, language: str | None = None, prepared_text: bool = False) -> int:
        """How many text tokens a text has as it stands, for accounts; see `SpeechRequest` for the arguments.

        Raises:
            ConfigError: its language cannot be told, or is none of the model's.
        """
        prompts = self._engine.scheduler.preparation.prompts
        return prompts.count_text_tokens(text, language, prepared_text)

    @property
    def languages(self) -> dict[str, str]:
        """What the model speaks: English names by their codes."""
        return dict(self._engine.scheduler.preparation.prompts.family.languages)

    @property
    def language_of_english(self) -> str:
        """What English texts are spoken in where speech is measured and not listened to."""
        return self._engine.scheduler.preparation.prompts.family.language_of_english

    def check_language(self, language: str) -> str:
        """The code of a language that the model speaks, from its code, its tag with a region, or its English name.

        Raises:
            ConfigError: the model does not speak it.
        """
        return self._engine.scheduler.preparation.prompts.family.language(language)

    @property
    def defaults(self) -> dict[str, float]:
        """What is spoken with where a request names nothing else, by parameter; those that the model has."""
        prompts = self._engine.scheduler.preparation.prompts
        values = asdict(prompts.values(SpeechParameters()))
        return {name: value for name, value in values.items() if name not in prompts.family.absent}

    @property
    def family(self) -> Family:
        """Which kind of model it is."""
        return self._engine.scheduler.preparation.prompts.family

    @property
    def voices(self) -> list[str]:
        """The names of the voices that come with the model: "builtin", which `conds` is at first, and others."""
        return list(voices_of(self.directory))

    @property
    def voice_kind(self) -> str | None:
        """Of which kind its voices are, see `ModelConfig.voice_kind`."""
        return self._enroller.config.voice_kind

    def builtin_voice(self, name: str) -> Voice:
        """One of `voices`. To speak with it: `tts.conds = tts.builtin_voice(name)`.

        Raises:
            ConfigError: the model has none of that name.
            CheckpointError: its file is damaged.
        """
        return self.enrol(voice_of_model(self.directory, name))

    @overload
    def generate(self, text: str, *args: Any, **parameters: Any) -> torch.Tensor: ...
    @overload
    def generate(self, text: Sequence[str], *args: Any, **parameters: Any) -> list[Any]: ...
    def generate(
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
        *,
        max_tokens: int | None = None,
        diffusion_steps: int | None = None,
        seed: int | None = None,
        pauses: Pauses = DEFAULT_PAUSES,
        clean_text: bool | Cleaning = False,
        language: str | None = None,
        language_id: str | None = None,
        prepared_text: bool = False,
        return_exceptions: bool = False,
        progress: bool | None = None,
    ) -> torch.Tensor | list[Any]:
        """Speak a text, or a list of them together.

        Args:
            text: one text, or a list.
            audio_prompt_path: a reference clip; as in the published class, it stays the voice in use for later calls.
            norm_loudness: of that clip, see `prepare_conditionals`.
            seed: of all randomness; text i of a list gets seed + i. The same seed gives the same audio on the same
                device, in float32 whatever else is in the batch.
            pauses: seconds of silence where a text is cut; "[pause:0.5s]" in a text overrides them at its place.
            clean_text: make markdown, addresses, footnote marks and emoji fit to be spoken.
            language, prepared_text: of all the texts, see `SpeechRequest`.
            language_id: the published name of `language`.
            return_exceptions: for a list, put a failed text's error in its place instead of raising `BatchError`.
            progress: show a bar; None does so for a list, on a terminal.
            others: see `SpeechParameters`; what is None takes the model's own default.

        Returns:
            float32 audio (1, n) on the CPU at `sr`; for a list, a list of them (or errors, see above) in its order.

        Raises:
            ConfigError: a parameter out of range, an empty or overlong text.
            AudioError: the reference clip cannot be used.
            GenerationError: the text could not be spoken.
            BatchError: some texts of a list failed; it holds the audio of all others.
        """
        if language is not None and language_id is not None:
            raise ConfigError("language and language_id are one: give either")
        language = language_id if language is None else language
        # Checked first: a bad parameter must not change the voice in use.
        parameters = SpeechParameters(
            exaggeration=exaggeration,
            cfg_weight=cfg_weight,
            temperature=temperature,
            min_p=min_p,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            max_tokens=max_tokens,
            diffusion_steps=diffusion_steps,
            seed=seed,
        )
        if audio_prompt_path is not None:
            self.prepare_conditionals(audio_prompt_path, norm_loudness=norm_loudness)
        if not isinstance(text, (str, list, tuple)):
            raise ConfigError(f"text must be a string or a list of strings, not {type(text).__name__}")
        texts = [text] if isinstance(text, str) else list(text)
        voice = self.voice
        results: list[Any] = [None] * len(texts)
        requests: dict[int, SpeechRequest] = {}
        for i, entry in enumerate(texts):
            try:
                requests[i] = SpeechRequest(
                    entry,
                    voice,
                    _nth(parameters, i),
                    pauses=pauses,
                    clean_text=clean_text,
                    language=language,
                    prepared_text=prepared_text,
                )
            except ConfigError as error:  # this text's alone
                results[i] = error
        places = list(requests)
        for result in with_progress(self.run(requests.values()), len(requests), self.sr, progress):
            spoken = result.error if result.audio is None else result.audio.unsqueeze(0)
            results[places[result.index]] = spoken
        if isinstance(text, str):
            if isinstance(results[0], Exception):
                raise results[0]
            return results[0]
        if not return_exceptions and any(isinstance(r, Exception) for r in results):
            raise BatchError(results)
        return results

    def generate_iter(
        self, texts: Iterable[str], *, language: str | None = None, prepared_text: bool = False, **parameters: Any
    ) -> Iterator[SpeechResult]:
        """Speak texts as they come; yield each result when it is ready, failures included, in no particular order.

        Args:
            texts: any iterable, read only as far ahead as keeps the engine busy.
            language, prepared_text: of all the texts, see `SpeechRequest`.
            parameters: those of `SpeechParameters`; text i gets seed + i.
        """
        settings = SpeechParameters(**parameters)
        voice = self.voice
        return self.run(
            SpeechRequest(text, voice, _nth(settings, i), language=language, prepared_text=prepared_text)
            for i, text in enumerate(texts)
        )

    def generate_stream(
        self,
        text: str,
        *,
        audio_prompt_path: str | os.PathLike[str] | None = None,
        pauses: Pauses = DEFAULT_PAUSES,
        clean_text: bool | Cleaning = False,
        language: str | None = None,
        prepared_text: bool = False,
        **parameters: Any,
    ) -> Iterator[AudioChunk | SpeechResult]:
        """Speak a text of any length; yield its audio in chunks while it is still being spoken.

        The last event is the text's `SpeechResult`: seed, finish reason, sample count, timings, and no audio. The audio
        is about that of `generate` from the same seed, and as many samples for a text of one piece; how it is cut
        depends on the text alone, so that the same seed gives the same audio. Closing the iterator ends the work.

        Args:
            parameters: those of `SpeechParameters`.
            others: as for `generate`.

        Raises:
            ConfigError, AudioError, GenerationError: as `generate`, and ConfigError where the model is in use.
        """
        settings = SpeechParameters(**parameters)
        if audio_prompt_path is not None:
            self.prepare_conditionals(audio_prompt_path)
        request = SpeechRequest(
            text,
            self.voice,
            settings,
            pauses=pauses,
            clean_text=clean_text,
            language=language,
            prepared_text=prepared_text,
        )
        return self.stream(request)

    def stream(self, request: Request) -> Iterator[AudioChunk | SpeechResult]:
        """`generate_stream` for a request, which may be a conversion.

        Raises:
            ConfigError: the model is in use or was shut down.
            ChatterboxError: the request failed.
        """
        return self._engine.stream(request)

    def run(self, requests: Iterable[Request], on_step: Callable[[int], None] | None = None) -> Iterator[SpeechResult]:
        """Speak requests of mixed voices and parameters; yield each result when it is ready, failures included.

        Conversions of recordings (`ConversionRequest`) may be among them.

        Args:
            requests: any iterable, read only as far ahead as keeps the engine busy.
            on_step: called after every step of the engine with the number of segments that T3 is speaking.

        Raises:
            ConfigError: the model was shut down, or an earlier run is neither exhausted nor closed.
        """
        return self._engine.run(requests, on_step)

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

    @property
    def s3gen_stage(self) -> S3GenStage:
        """The stage that voices them, likewise."""
        return self._engine.voicing.stage

    @property
    def voice(self) -> Voice:
        """The voice in use.

        Raises:
            ConfigError: there is none.
        """
        if self.conds is None:
            raise ConfigError("there is no voice: pass audio_prompt_path or call prepare_conditionals first")
        return self.conds

    def shutdown(self) -> None:
        """Stop the engine and free its memory. Nothing happens when called again.

        An `AsyncChatterbox` that is open on the model is closed first: its requests fail with `AbortedError`. An
        iterator of `run` or `generate_iter` that is not exhausted raises `ConfigError` when it is asked for more.
        """
        if self._engine.shutdown():
            self._enroller.release()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def _nth(parameters: SpeechParameters, i: int) -> SpeechParameters:
    """The parameters of text i of a list: its seed is i more than the first's."""
    return parameters if parameters.seed is None else replace(parameters, seed=(parameters.seed + i) % (MAX_SEED + 1))
