"""The T3 stage: prompts go into vLLM's engine, speech tokens come out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import torch
from torch import nn

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cuda.graphs import recording
from chatterbox_vllm.cuda.streams import Urgency, new_stream, on_stream
from chatterbox_vllm.errors import ConfigError, DeviceError, GenerationError
from chatterbox_vllm.quantization.files import stored_quantization
from chatterbox_vllm.quantization.live import ComponentInfo, component_info
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.graph_sizes import graph_sizes
from chatterbox_vllm.t3.kv_cache import kv_cache_bytes
from chatterbox_vllm.t3.options import SharedPrefix, T3Options, T3Output
from chatterbox_vllm.t3.quantization.methods import (
    AWQ_CPU_CONFIG,
    BNB_CONFIG,
    engine_quantization,
    method_in_force,
)
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.t3.threads import threads_of_steps
from chatterbox_vllm.t3.vllm.capture import working_on
from chatterbox_vllm.t3.vllm.config import hf_config
from chatterbox_vllm.t3.vllm.directory import ModelDirectory
from chatterbox_vllm.t3.vllm.environment import (
    prepare_environment,
    require_batch_invariance,
    require_ieee_float32,
    shield_kernel_dispatcher,
)
from chatterbox_vllm.t3.vllm.lifetime import enter, leave, leaving
from chatterbox_vllm.t3.vllm.plugin import ARCHITECTURES
from chatterbox_vllm.t3.vllm.prefix_keys import PREFIX, name_prefixes

if TYPE_CHECKING:
    from chatterbox_vllm.t3.vllm.forcing import ForcedTokens  # these import vllm
    from chatterbox_vllm.t3.vllm.multi_step import MultiStep

_SAMPLER = "chatterbox_vllm.t3.vllm.sampler:SpeechSampler"
# Before the sampler: what is forced leaves it one token to choose from, and what is followed changes one token's logit.
_FORCING = "chatterbox_vllm.t3.vllm.forcing:TeacherForcing"
_FOLLOWING = "chatterbox_vllm.t3.vllm.following:FollowText"
_SHARE_OF_FREE = 0.9  # the rest is for what starting takes before vLLM looks
_LESS_MEMORY = "; here it is max_model_len, max_batch_size, kv_cache_bytes and the tier that say how much it takes"
_START_OF_SPEECH_ROWS = 2  # at the end of a prompt of Llama
_UNUSED_SHARE = 0.9  # on a CPU, where the cache's size is all that counts


class T3Stage:
    """vLLM's engine around T3, stepped by its owner; not safe for use from several threads.

    Raises:
        DeviceError: the engine cannot start (no memory, no kernel for the dtype).
    """

    def __init__(self, config: T3Config, weights: Weights, options: T3Options, device: torch.device):
        if options.max_model_len > (most := backbone_of(config).most_positions(config)):
            raise ConfigError(f"max_model_len={options.max_model_len} is more than the model can ever use ({most})")
        stored = stored_quantization(weights)
        method = method_in_force(options.quantization, stored, str(weights.path))
        # Checked again: a quantized checkpoint may bring a method that nobody asked for.
        options = replace(options, quantization=method)
        quantization = engine_quantization(method, options.double_quant, stored, device)
        self.config, self.options, self.device = config, options, device
        self._stream = new_stream(device, Urgency.HIGHEST)
        self._threads = threads_of_steps(config, device)
        self._multi_step: MultiStep | None = None
        prepare_environment()
        if options.deterministic:
            require_batch_invariance(device)
        longest = options.max_model_len
        described = hf_config(config, config.guidance_streams, longest, longest, options.follow_text)
        if quantization.hf_config is not None:
            described["quantization_config"] = quantization.hf_config
        self._directory = ModelDirectory(described, weights.path)
        try:
            with recording:
                enter(device)
                try:
                    self._engine = self._start(self._directory.path, quantization.argument)
                except BaseException:
                    # What vLLM has set up by then stays where another engine runs.
                    leave(device)
                    raise
        except BaseException as error:
            self._directory.close()
            if isinstance(error, (RuntimeError, ValueError, MemoryError, torch.OutOfMemoryError)):
                raise _cannot_start(error) from error
            raise
        if device.type == "cuda":
            try:
                self._speak_once()
            except GenerationError as error:
                self.close()
                raise _cannot_start(error.__cause__ or error) from error

    def _start(self, directory: Path, quantization: str | None) -> Any:
        from vllm import ModelRegistry
        from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode, KernelConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        # The class itself: where vLLM knows its name alone, a first start imports all of vLLM once more in a process of
        # its own, to look at the class.
        architecture, module = ARCHITECTURES[self.config.backbone]
        ModelRegistry.register_model(architecture, getattr(import_module(module), architecture))
        # They register themselves, which has to be before engine arguments are made.
        if quantization == BNB_CONFIG:
            import chatterbox_vllm.t3.vllm.bitsandbytes
        elif quantization == AWQ_CPU_CONFIG:
            import chatterbox_vllm.t3.vllm.awq  # noqa: F401
        shield_kernel_dispatcher()
        if self.options.dtype == torch.float32:
            require_ieee_float32()
        name_prefixes()
        options = self.options
        compilation = CompilationConfig()
        if options.deterministic and options.cuda_graphs:
            # vLLM's own kernels for everything: Inductor picks by timing how it sums a norm.
            compilation = CompilationConfig(mode=CompilationMode.NONE, cudagraph_mode=CUDAGraphMode.FULL_DECODE_ONLY)
        arguments = EngineArgs(
            model=str(directory),
            dtype=str(options.dtype).removeprefix("torch."),
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            # Where positions are aligned at the prompt's end, equal beginnings stand at different places. How many rows
            # are computed together moves a sum's last bits, which deterministic mode is not to depend on.
            enable_prefix_caching=backbone_of(self.config).cacheable and not options.deterministic,
            max_model_len=options.max_model_len,
            max_num_seqs=options.max_batch_size,
            max_num_batched_tokens=self._most_rows,
            kv_cache_memory_bytes=self.kv_cache_bytes,
            gpu_memory_utilization=self._memory_share(),
            enforce_eager=not options.cuda_graphs,
            compilation_config=compilation,
            # It compiles kernels for every batch there may be, 30 s at each start; `_speak_once` compiles what is used.
            kernel_config=KernelConfig(enable_jit_warmup=False),
            cudagraph_capture_sizes=self._graph_sizes(),
            logits_processors=self._processors(),
            disable_log_stats=True,
            use_tqdm_on_load=False,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            seed=0,
            quantization=quantization,
            # Tokens of several steps are told together, so the scheduler cannot be a step ahead of them.
            async_scheduling=False if options.multi_step > 1 else None,
        )
        with working_on(self._stream), self._recording_prompts():
            engine = LLMEngine.from_engine_args(arguments)
        if options.follow_text:
            from chatterbox_vllm.t3.vllm.following import attach  # imports vllm

            attach(engine)
        if options.multi_step > 1:
            from chatterbox_vllm.t3.vllm.multi_step import MultiStep  # imports vllm

            self._multi_step = MultiStep(engine, options.multi_step)
        return engine

    def _recording_prompts(self) -> contextlib.AbstractContextManager[None]:
        """How steps that take prompts in become CUDA graphs, while the engine starts."""
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        from chatterbox_vllm.t3.vllm.prompt_graphs import recording_whole_steps  # imports vllm and triton

        return recording_whole_steps()

    def _processors(self) -> list[str]:
        """Of the logits, in the order in which they see them."""
        wanted = {_FORCING: self.options.teacher_forcing, _FOLLOWING: self.options.follow_text, _SAMPLER: True}
        return [name for name, is_wanted in wanted.items() if is_wanted]

    @property
    def _most_rows(self) -> int:
        """Of a step."""
        return max(self.options.max_batched_tokens, self.options.max_batch_size)

    def _graph_sizes(self) -> list[int] | None:
        options = self.options
        if not options.cuda_graphs:
            return None
        if options.graph_sizes is not None:
            return list(options.graph_sizes)
        # Batch-invariant mode has graphs of decode steps alone.
        return list(graph_sizes(options.max_batch_size, 0 if options.deterministic else self._most_rows))

    def _speak_once(self) -> None:
        """Take in a short prompt and draw tokens: the first request need not wait for kernels to be compiled."""
        sampling = Sampling(
            cfg_weight=0.5, temperature=0.8, min_p=0.05, top_p=0.95, top_k=0, repetition_penalty=1.2, max_tokens=3
        )
        follows, width = self.options.follow_text, self.config.guidance_streams * self.config.hidden_size
        rows = 8 + self.config.conditioning_length if follows else 8
        self.add("warm-up", torch.zeros(rows, width), sampling, seed=0, end_held_for=0 if follows else None)
        while self.unfinished:
            self.step()

    def _memory_share(self) -> float:
        """Of the card that must be free at the start; vLLM would insist on 92 %, though it is told its cache's size."""
        if self.device.type != "cuda":
            return _UNUSED_SHARE
        free, total = torch.cuda.mem_get_info(self.device)
        return _SHARE_OF_FREE * free / total

    @property
    def kv_cache_bytes(self) -> int:
        """The memory that the KV cache gets."""
        if self.options.kv_cache_bytes is not None:
            return self.options.kv_cache_bytes
        element, longest, most = self.options.dtype.itemsize, self.options.max_model_len, self.options.max_batch_size
        return kv_cache_bytes(self.config, element, longest, most, self.device.type)

    @property
    def model(self) -> nn.Module:
        """The live model inside the engine."""
        return self._engine.apply_model(lambda model: model)[0]

    @property
    def quantization(self) -> ComponentInfo:
        """What quantization is in force, asked of the live model."""
        from chatterbox_vllm.t3.vllm.live import engine_layer

        return component_info(self.model, engine_layer)

    @property
    def kv_blocks_in_use(self) -> int:
        """Blocks of the KV cache that requests hold; none when nothing is being generated."""
        pool = self._engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        # One block is vLLM's own, for padding.
        return int(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())

    @property
    def unfinished(self) -> bool:
        """Whether a request is waiting or being generated."""
        return bool(self._engine.has_unfinished_requests())

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
    ) -> None:
        """Queue a request.

        Args:
            prompt: [P, streams * H] from the builder's `prompt`.
            seed: of the draws.
            uniforms: the draws themselves, at least `max_tokens` of them, instead of the seed.
            forced: the tokens to say, `max_tokens` of them, whatever would be drawn; takes in the logits on the way.
            told_every: `step` returns the first token as soon as it is drawn, and then those of every so many steps
                together, not all of them at the end. What vLLM makes of each telling takes the host as long as the card
                takes for a tenth of a step.
            awaited: so many tokens, its first, are wanted as soon as they may be told, which ends a turn of several.
            end_held_for: follow the text, see `following.py`: its end is brought about where attention says that it is
                said, and for at most so many speech tokens held back while it is not. None leaves the end alone.
            shared_prefix: rows that other prompts begin with, too, so that their keys and values are computed once
                where a model allows it. None finds them by what is in them, which takes longer.

        Raises:
            ConfigError: the prompt and `max_tokens` exceed `max_model_len`, the prompt has another width, tokens are
                forced on an engine without `teacher_forcing`, or a text is to be followed on one without `follow_text`.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import embeds_input
        from vllm.sampling_params import RequestOutputKind

        config = self.config
        rows, width = prompt.shape
        if width != config.guidance_streams * config.hidden_size:
            raise ConfigError(f"a T3 prompt must be {config.guidance_streams * config.hidden_size} wide, not {width}")
        if rows + sampling.max_tokens > self.options.max_model_len:
            raise ConfigError(
                f"a prompt of {rows} rows and max_tokens={sampling.max_tokens} exceed "
                f"max_model_len={self.options.max_model_len}"
            )
        extra: dict[str, Any] = {
            "cfg_weight": float(sampling.cfg_weight),
            "repetition_penalty": float(sampling.repetition_penalty),
            "temperature": float(sampling.temperature),
            "min_p": float(sampling.min_p),
            "top_p": float(sampling.top_p),
            "top_k": float(sampling.top_k),
            "seed": seed,
            "awaited": awaited,
            PREFIX: shared_prefix,
        }
        if uniforms is not None:
            extra["uniforms"] = list(uniforms)
        if forced is not None:
            if not self.options.teacher_forcing:
                raise ConfigError("this engine forces no tokens; open it with teacher_forcing=True, for evaluation")
            if len(forced.tokens) != sampling.max_tokens:
                raise ConfigError(
                    f"max_tokens={sampling.max_tokens} must be the number of forced tokens, {len(forced.tokens)}"
                )
            extra["forced"] = forced
        if end_held_for is not None:
            if not self.options.follow_text:
                raise ConfigError("this engine follows no text; open it with follow_text=True, or leave the end alone")
            from chatterbox_vllm.t3.vllm.following import FollowedText  # imports vllm

            extra["followed"] = FollowedText(rows - config.conditioning_length - _START_OF_SPEECH_ROWS, end_held_for)
        told = SamplingParams(
            temperature=0.0,  # the sampler's own is in `extra`
            max_tokens=sampling.max_tokens,
            stop_token_ids=[config.stop_speech_token],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY if told_every is None else RequestOutputKind.DELTA,
            stream_interval=told_every,
            extra_args=extra,
            skip_clone=True,  # it is this request's alone; vLLM would copy it deeply
        )
        # The token ids are what the repetition penalty sees of the prompt: start-of-speech, as published.
        with self._threads():
            engine_input = embeds_input(
                prompt.to(self.options.dtype),
                prompt_token_ids=[config.start_speech_token] * rows,
                is_token_ids=[False] * rows,
            )
            self._engine.add_request(request_id, engine_input, told)

    def step(self, should_yield: Callable[[], bool] | None = None) -> list[T3Output]:
        """Generate one token for every request that has room; return those that finished with it, or tell as drawn.

        With `multi_step`, up to so many tokens.

        Args:
            should_yield: asked after each of several tokens whether to return now.

        Raises:
            GenerationError: the engine failed; nothing that it held is left.
        """
        if self._multi_step is not None:
            self._multi_step.should_yield = should_yield
        try:
            with recording, on_stream(self._stream), self._threads():
                outputs = self._engine.step()
        except Exception as error:
            raise GenerationError(
                f"the T3 engine failed ({type(error).__name__}: {error}); load the model anew"
            ) from error
        return [
            T3Output(
                request_id=output.request_id,
                token_ids=tuple(output.outputs[0].token_ids),
                finish_reason=_finish_reason(output) if output.finished else None,
            )
            for output in outputs
        ]

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests and free what they hold."""
        self._engine.abort_request(list(request_ids))

    def close(self) -> None:
        """Stop the engine and free its memory. Other models of the process go on."""
        with recording, leaving(self.device):
            self._engine.engine_core.shutdown()
        del self._engine
        self._directory.close()

    def end_with_process(self) -> None:
        """In place of `close` where the process is about to exit: vLLM would take the engine apart then, for 2 s."""
        self._engine.engine_core._finalizer.detach()  # vLLM's own exit function
        # The file by which the processes of vLLM's groups would meet. The directory has an exit function.
        for meeting_place in self._engine.collective_rpc(lambda worker: worker.distributed_init_method):
            place = urlsplit(meeting_place)
            if place.scheme == "file":
                Path(place.path).unlink(missing_ok=True)


def _cannot_start(error: BaseException) -> DeviceError:
    remedy = _LESS_MEMORY if "memory" in f"{type(error).__name__} {error}".lower() else ""
    return DeviceError(f"the T3 engine cannot start: {error}{remedy}")


def _finish_reason(output: Any) -> Literal["stop", "length"]:
    return "stop" if output.outputs[0].finish_reason == "stop" else "length"
