"""The T3 stage that fills in blocks: prompts go in, speech tokens come out, a block at a time.

vLLM cannot do this: its attention is causal, and keys and values of a step are final there. Here a block's are written
anew at each of its steps, and once more when it is finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.cuda.graphs import recording
from chatterbox_vllm.cuda.streams import Urgency, new_stream, on_stream
from chatterbox_vllm.errors import ConfigError, DeviceError, GenerationError
from chatterbox_vllm.quantization.files import stored_quantization
from chatterbox_vllm.quantization.live import ComponentInfo, component_info
from chatterbox_vllm.quantization.modules import quantize_layers
from chatterbox_vllm.quantization.storage import require_bitsandbytes, scheme_of
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.blocks.network import BlockTransformer, causal
from chatterbox_vllm.t3.blocks.pages import Pages
from chatterbox_vllm.t3.blocks.sequence import Sequence
from chatterbox_vllm.t3.blocks.unmasking import StepValues, block_draws, unmask
from chatterbox_vllm.t3.kv_cache import kv_cache_bytes
from chatterbox_vllm.t3.options import SharedPrefix, T3Options, T3Output
from chatterbox_vllm.t3.quantization.methods import check_decoding, method_in_force
from chatterbox_vllm.t3.sampling import Sampling
from chatterbox_vllm.t3.threads import threads_of_steps

_STREAMS = 2
_LESS_MEMORY = "lower max_model_len, max_batch_size or kv_cache_bytes"


class BlockStage:
    """T3 in plain torch, stepped by its owner; not safe for use from several threads.

    Prompts are read whole, as many in a step as `max_batched_tokens` has rows for, and one at least. CUDA graphs are
    not recorded, which `options` says whatever was asked for.

    Raises:
        ConfigError: an option that is vLLM's alone.
        DeviceError: the device has too little memory.
    """

    def __init__(self, config: T3Config, weights: Weights, options: T3Options, device: torch.device):
        assert config.blocks is not None
        if options.max_model_len > (most := backbone_of(config).most_positions(config)):
            raise ConfigError(f"max_model_len={options.max_model_len} is more than the model can ever use ({most})")
        stored = stored_quantization(weights)
        method = method_in_force(options.quantization, stored, str(weights.path))
        check_decoding(config, method)
        _check_options(options)
        self.config, self.device = config, device
        self.options = replace(options, quantization=method, cuda_graphs=False)
        self._blocks = config.blocks
        self._stream = new_stream(device, Urgency.HIGHEST)
        self._threads = threads_of_steps(config, device)
        with torch.device("meta"):
            model = BlockTransformer(config, options.max_model_len + config.blocks.block_size).to(options.dtype)
        if method is not None:
            require_bitsandbytes()
            double = options.double_quant if stored is None else stored.double_quant
            quantize_layers(model, model.quantizable_layers(), scheme_of(method, double))
        try:
            load_module(model, weights, prefix="", device=device)
            self._model: BlockTransformer = model.eval()
            self._pages = Pages(config, self.kv_cache_bytes, options.dtype, device)
            with torch.inference_mode():
                self._prior = model.prior()
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise DeviceError(f"T3 does not fit into memory: {error}; {_LESS_MEMORY}") from error
        if self._pages.count < (least := Pages.needed(options.max_model_len + config.blocks.block_size - 1)):
            raise DeviceError(
                f"kv_cache_bytes={self.kv_cache_bytes} holds {self._pages.count} pages of keys and values, and one "
                f"request of max_model_len={options.max_model_len} needs {least}: raise the one or lower the other"
            )
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def kv_cache_bytes(self) -> int:
        """The memory that keys and values get."""
        if self.options.kv_cache_bytes is not None:
            return self.options.kv_cache_bytes
        element, longest, most = self.options.dtype.itemsize, self.options.max_model_len, self.options.max_batch_size
        return kv_cache_bytes(self.config, element, longest, most, self.device.type)

    @property
    def model(self) -> nn.Module:
        """The live model."""
        return self._model

    @property
    def quantization(self) -> ComponentInfo:
        """What quantization is in force, asked of the live model."""
        return component_info(self._model)

    @property
    def kv_blocks_in_use(self) -> int:
        """Pages of keys and values that requests hold; none when nothing is being generated."""
        return self._pages.in_use

    @property
    def unfinished(self) -> bool:
        """Whether a request is waiting or being generated."""
        return bool(self._waiting or self._running)

    def add(
        self,
        request_id: str,
        prompt: torch.Tensor,
        sampling: Sampling,
        seed: int,
        uniforms: SequenceOf[float] | None = None,
        forced: object | None = None,
        told_every: int | None = None,
        awaited: int = 0,
        end_held_for: int | None = None,
        shared_prefix: SharedPrefix | None = None,
    ) -> None:
        """Queue a request.

        Args:
            prompt: [P, 2 * H] from the builder's `prompt`.
            sampling: of which guidance, temperature and `max_tokens` count here.
            seed: of the draws.
            told_every: `step` returns the tokens of each block when it is finished, not all of them at the end.
            awaited: of no account, since blocks are told as soon as they may be.
            shared_prefix: of no account, since no prompt's rows are kept for another.

        Raises:
            ConfigError: the prompt and `max_tokens` exceed `max_model_len`, the prompt has another width, or draws,
                tokens, or how long to hold the end back are given.
        """
        rows, width = prompt.shape
        if width != _STREAMS * self.config.hidden_size:
            raise ConfigError(f"a T3 prompt must be {_STREAMS * self.config.hidden_size} wide, not {width}")
        if rows + sampling.max_tokens > self.options.max_model_len:
            raise ConfigError(
                f"a prompt of {rows} rows and max_tokens={sampling.max_tokens} exceed "
                f"max_model_len={self.options.max_model_len}"
            )
        if uniforms is not None or forced is not None:
            raise ConfigError(
                "a model that fills in blocks takes neither draws nor tokens from outside, as a token is drawn several "
                "times before it stays: give a seed"
            )
        if end_held_for is not None:
            raise ConfigError("a model that fills in blocks follows no text: leave end_held_for out")
        told, stop = told_every is not None, self.config.stop_speech_token
        self._waiting.append(Sequence(request_id, prompt, sampling, seed, told, self._blocks, stop))

    def step(self, should_yield: Callable[[], bool] | None = None) -> list[T3Output]:
        """One step for the block of every request that has room; return those that finished with it, or tell a block.

        Args:
            should_yield: not asked, since a turn is one step.

        Raises:
            GenerationError: the model failed; nothing that it held is left.
        """
        try:
            with recording, on_stream(self._stream), self._threads(), torch.inference_mode():
                self._take_in()
                self._denoise()
        except Exception as error:
            self._drop([*self._waiting, *self._running])
            raise GenerationError(
                f"the T3 engine failed ({type(error).__name__}: {error}); load the model anew"
            ) from error
        return self._tell()

    def abort(self, request_ids: SequenceOf[str]) -> None:
        """Drop requests and free what they hold."""
        dropped = set(request_ids)
        self._drop([one for one in (*self._waiting, *self._running) if one.request_id in dropped])

    def close(self) -> None:
        """Free the model's memory."""
        del self._model, self._pages, self._prior

    def end_with_process(self) -> None:
        """In place of `close` where the process is about to exit: nothing is left that must be taken apart."""

    def _drop(self, sequences: SequenceOf[Sequence]) -> None:
        for sequence in sequences:
            if sequence.places is not None:
                self._pages.give_back(sequence.places)
        self._waiting = deque(one for one in self._waiting if one not in sequences)
        self._running = [one for one in self._running if one not in sequences]

    def _take_in(self) -> None:
        """Prompts of waiting requests, as long as there is room for them; each is a forward of its own."""
        rows = 0
        while self._waiting and len(self._running) < self.options.max_batch_size:
            rows += len(self._waiting[0].prompt)
            if rows > self.options.max_batched_tokens and rows > len(self._waiting[0].prompt):
                return
            places = self._pages.take(self._waiting[0].reserved)
            if places is None:
                return
            sequence = self._waiting.popleft()
            sequence.places = places
            self._running.append(sequence)
            self._read_prompt(sequence, places)

    def _read_prompt(self, sequence: Sequence, places: torch.Tensor) -> None:
        length = len(sequence.prompt)
        x = torch.stack(sequence.prompt.chunk(_STREAMS, dim=-1)).to(self.device, self.options.dtype)
        written = places[None, :length].to(self.device)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._pages.write(layer, written, k, v)
            return causal(layer, q, k, v)

        hidden = self._model(x, torch.arange(length, device=self.device)[None], attend)
        sequence.context, sequence.length = hidden[:, -1], length

    def _denoise(self) -> None:
        """One forward for all blocks, and what comes of it."""
        running, size, device = self._running, self._blocks.block_size, self.device
        if not running:
            return
        mask = self.config.mask_token
        block = torch.tensor([[mask if t is None else t for t in _padded(one.block, size, mask)] for one in running])
        masked = torch.tensor([[t is None for t in _padded(one.block, size, mask)] for one in running])
        hidden = self._forward(block.to(device))
        context = torch.stack([one.held[1] for one in running], dim=1)
        before = torch.cat([context.unsqueeze(2), hidden[:, :, :-1]], dim=2)
        numbers = block_draws(
            np.array([one.seed for one in running], dtype=np.uint64),
            np.array([one.steps_before for one in running], dtype=np.uint64),
            size,
        )
        tokens, taken = unmask(
            self._model.log_probabilities(before),
            masked.to(device),
            self._prior,
            self._values(),
            torch.from_numpy(np.ascontiguousarray(numbers)).to(device),
            self._blocks,
        )
        # At once: each transfer waits for the device.
        for i, (drawn, here) in enumerate(torch.stack([tokens, taken.long()], dim=1).tolist()):
            if running[i].filled:
                running[i].advance(hidden[:, i, -1].clone())
            else:
                running[i].fill(drawn, [bool(value) for value in here])

    def _forward(self, block: torch.Tensor) -> torch.Tensor:
        """Hidden states of the blocks [N, size], [2, N, size, H]; their keys and values are written down."""
        running, size, device = self._running, self._blocks.block_size, self.device
        known = [one.held[0][: one.length + size] for one in running]
        places = pad_sequence(known, batch_first=True).to(device)
        lengths = torch.tensor([one.length for one in running], device=device)
        sizes = torch.tensor([one.size for one in running], device=device)
        own = lengths[:, None] + torch.arange(size, device=device)
        written = places.gather(1, own)
        # What stands behind a sequence's end, and behind a shorter last block, nobody sees.
        seen = torch.arange(places.shape[1], device=device) < (lengths + sizes)[:, None]
        seen = seen.repeat(_STREAMS, 1)[:, None, None]

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._pages.write(layer, written, k, v)
            k, v = self._pages.read(layer, places)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)

        rows = self._model.embed(block).repeat(_STREAMS, 1, 1)
        hidden = self._model(rows, own.repeat(_STREAMS, 1), attend)
        return hidden.unflatten(0, (_STREAMS, len(running)))

    def _values(self) -> StepValues:
        sampling = [(one.sampling.cfg_weight, one.sampling.temperature) for one in self._running]
        counts = [(one.step, one.least) for one in self._running]
        weight, temperature = torch.tensor(sampling, dtype=torch.float32, device=self.device).split(1, dim=1)
        step, least = torch.tensor(counts, device=self.device).split(1, dim=1)
        return StepValues(weight, temperature, step, least)

    def _tell(self) -> list[T3Output]:
        outputs = []
        over = [one for one in self._running if one.over]
        for one in self._running:
            if one.stopped:
                one.end()
            if one in over:
                outputs.append(T3Output(one.request_id, one.news(), "stop" if one.stopped else "length"))
            elif one.told and (fresh := one.news()):
                outputs.append(T3Output(one.request_id, fresh, None))
        self._drop(over)
        return outputs


def _check_options(options: T3Options) -> None:
    """Refuse what this stage does not do.

    Raises:
        ConfigError: naming the option and the remedy.
    """
    for name in ("deterministic", "teacher_forcing", "follow_text"):
        if getattr(options, name):
            raise ConfigError(f"{name}=True is not to be had of a model that fills in blocks: leave it out")
    if options.multi_step > 1:
        raise ConfigError(
            f"multi_step={options.multi_step} is not to be had of a model that fills in blocks: leave it out"
        )


def _padded(block: SequenceOf[int | None], size: int, mask: int) -> list[int | None]:
    return [*block, *[mask] * (size - len(block))]
