"""The flow for a batch: speech tokens, prompts and noise of many utterances to their mels in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from chatterbox_vllm.checkpoint.config import FlowConfig
from chatterbox_vllm.cuda.graphs import GraphedFunction, GraphPool
from chatterbox_vllm.cuda.transfer import to_device
from chatterbox_vllm.s3gen.execution import Execution
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING, FlowEncoder
from chatterbox_vllm.s3gen.flow.estimator import Estimator
from chatterbox_vllm.s3gen.flow.solver import STEADY, Step, solve, step_of, time_span, velocity_of
from chatterbox_vllm.s3gen.packing import SIZES, PackedLayout, packed_size
from chatterbox_vllm.s3gen.prompt import PreparedPrompt
from chatterbox_vllm.s3gen.ragged import PaddedLayout, padded_size, padding_mask

# Packed batches need 13; padded ones have a shape for each number of rows and length.
_MOST_GRAPHS = 32
_LONGEST_ROW = 2048  # of those that graphs are recorded with; attention takes the square of it


class TokenToMel:
    """Reads the weights as they are now, on their device; make a new one after they were cast or moved."""

    def __init__(
        self,
        config: FlowConfig,
        encoder: FlowEncoder,
        estimator: Estimator,
        device: torch.device,
        execution: Execution,
    ):
        self.config, self.encoder, self.estimator = config, encoder, estimator
        self.device, self.execution = device, execution
        self.streams = 1 if config.meanflow else 2  # of classifier-free guidance
        evaluate: Callable[..., torch.Tensor] = estimator
        if execution.kernels == "triton":
            from chatterbox_vllm.s3gen.flow.packed_estimator import PackedEstimator  # imports triton

            evaluate = PackedEstimator(estimator)
        step = step_of(velocity_of(evaluate, None if config.meanflow else config.cfg_rate))
        self.graph_pool = GraphPool()
        self._graphs = GraphedFunction(step, _MOST_GRAPHS, self.graph_pool, STEADY) if execution.cuda_graphs else None
        self._step: Step = step if self._graphs is None else self._graphs
        self._steps: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(
        self,
        speech: Sequence[torch.Tensor],
        prompts: Sequence[PreparedPrompt],
        z: Sequence[torch.Tensor],
        steps: int,
        between: Callable[[], object] | None = None,
    ) -> list[torch.Tensor]:
        """Mels [prompt + generated frames, mels] float32, one for each utterance.

        Args:
            speech: speech tokens of each utterance, [n] int64 on the host.
            z: see `S3GenNoise`.
            steps: Euler steps.
            between: see `solve`.
        """
        device, dtype = self.device, self.execution.dtype
        sent = to_device(torch.cat(list(speech)), device).split([len(tokens) for tokens in speech])
        tokens = [torch.cat([prompt.tokens, own]) for prompt, own in zip(prompts, sent, strict=True)]
        lengths = [len(row) for row in tokens]
        mu = self.encoder(pad_sequence(tokens, batch_first=True), padding_mask(lengths, device))
        speaker = torch.stack([prompt.speaker for prompt in prompts])[:, None].expand(-1, mu.shape[1], -1)
        mels = pad_sequence([prompt.mel for prompt in prompts], batch_first=True)
        mels = F.pad(mels, (0, 0, 0, mu.shape[1] - mels.shape[1]))

        layout = self.layout([UPSAMPLING * length for length in lengths])
        noise = layout.pack(pad_sequence([to_device(own, device).T for own in z], batch_first=True))
        condition = layout.pack(torch.cat([part.to(dtype) for part in (mu, speaker, mels)], dim=-1))
        return layout.unpack(self.solve(layout, noise, condition, steps, between))

    def solve(
        self,
        layout: PackedLayout | PaddedLayout,
        z: torch.Tensor,
        condition: torch.Tensor,
        steps: int,
        between: Callable[[], object] | None = None,
    ) -> torch.Tensor:
        """See `solver.solve`, for rows that lie as `layout` says."""
        span, times = self._span_and_times(steps)
        return solve(self._step, z, condition, span, times, layout.tables, between)

    def frames_computed(self, lengths: Sequence[int]) -> int:
        """How many frames the estimator goes through for rows of these lengths, those that are none included."""
        graphs = self.execution.cuda_graphs
        if self.execution.kernels == "triton":
            return packed_size(sum(lengths)) if graphs else sum(lengths)
        return len(lengths) * (padded_size(max(lengths)) if graphs else max(lengths))

    def record_graphs(self, most_frames: int, longest: int) -> int:
        """Record now the graphs of the shapes that batches come in; nothing without CUDA graphs.

        Args:
            most_frames: that a packed batch of several rows is filled up to, prompts included.
            longest: frames of the longest row. Padded rows are prepared for one by one, batches of several are not.

        Returns:
            How many graphs there are.
        """
        if self._graphs is None:
            return 0
        span, times = self._span_and_times(1)
        mels = self.config.num_mels
        for lengths in self._usual_shapes(most_frames, longest):
            layout = self.layout(lengths)
            shape = (layout.frames,) if isinstance(layout, PackedLayout) else (len(lengths), layout.frames)
            state = torch.zeros(*shape, mels, device=span.device)
            condition = torch.zeros(*shape, 3 * mels, device=span.device, dtype=self.execution.dtype)
            self._graphs.record(state, times[0], span[0], condition, *layout.tables)
        return self._graphs.count

    @property
    def graphs(self) -> int:
        """How many graphs have been recorded."""
        return 0 if self._graphs is None else self._graphs.count

    def _usual_shapes(self, most_frames: int, longest: int) -> Iterator[list[int]]:
        """Rows that stand for every shape, the largest first."""
        if self.execution.kernels == "triton":
            largest = max(most_frames, packed_size(longest))
            for size in reversed([size for size in SIZES if size <= largest]):
                rows = -(-size // _LONGEST_ROW)
                yield [size // rows] * rows
        else:
            smallest = padded_size(1)
            yield from ([frames] for frames in range(padded_size(longest), 0, -smallest))

    def layout(self, lengths: Sequence[int]) -> PackedLayout | PaddedLayout:
        """How the estimator's rows of so many frames lie."""
        layout = PackedLayout if self.execution.kernels == "triton" else PaddedLayout
        return layout.of(lengths, self.device, self.streams, bucketed=self.execution.cuda_graphs)

    def _span_and_times(self, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The moments of `steps` steps, and what the estimator makes of them."""
        if steps not in self._steps:
            span = to_device(time_span(steps, cosine=not self.config.meanflow), self.device)
            self._steps[steps] = span, self.estimator.time_table(span[:-1], span[1:])[:, None]
        return self._steps[steps]
