"""S3Gen: speech tokens and a voice to a waveform, many utterances in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from typing_extensions import Self

from chatterbox_vllm.caches.memory import MemoryCache
from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.cuda.precision import ieee_float32
from chatterbox_vllm.cuda.transfer import RowsToHost, ToHost, to_device
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.quantization.storage import Scheme
from chatterbox_vllm.s3gen.execution import Execution
from chatterbox_vllm.s3gen.flow.batch import TokenToMel
from chatterbox_vllm.s3gen.networks import S3GenNetworks
from chatterbox_vllm.s3gen.noise import NoiseSource, S3GenNoise
from chatterbox_vllm.s3gen.prompt import FlowPrompt, PreparedPrompt
from chatterbox_vllm.s3gen.request import S3GenRequest, check_ids, check_request, mel_frames, require_speech
from chatterbox_vllm.s3gen.streaming.render import ChunkRenderer
from chatterbox_vllm.s3gen.streaming.state import StreamChunk, StreamState
from chatterbox_vllm.s3gen.vocoder.batch import MelToWave, fade_in

__all__ = ["S3Gen", "S3GenRequest", "fade_in"]

AskedKernels = Literal["auto", "torch", "triton"]
_PROMPTS_BYTES = 64 << 20  # kept on the device; a reference of 10 s takes 0.16 MB


class S3Gen(S3GenNetworks):
    """The networks at work. One thread at a time.

    A row of a batch comes out as it would alone. In float32 it differs from that by the rounding of sums in another
    order. In half precision it differs by less than half precision itself does from float32, which for a mel is 1.5e-3
    in float16 and 1.1e-2 in bfloat16 (relative L2).
    """

    def __init__(self, config: S3GenConfig):
        super().__init__(config)
        self.execution = Execution.choose("cpu", torch.float32, torch.float32)
        self._asked: tuple[AskedKernels, bool | None] = ("auto", None)
        self._prompts: MemoryCache[str, PreparedPrompt] = MemoryCache(lambda prompt: prompt.bytes, _PROMPTS_BYTES)
        self._token_to_mel: TokenToMel | None = None
        self._mel_to_wave: MelToWave | None = None
        self._chunks: ChunkRenderer | None = None

    @classmethod
    def from_weights(
        cls,
        config: S3GenConfig,
        weights: Weights,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        vocoder_dtype: torch.dtype = torch.float32,
        kernels: AskedKernels = "auto",
        cuda_graphs: bool | None = None,
        quantization: Scheme | None = None,
    ) -> Self:
        """Load from `s3gen.safetensors` (enrolment nets left out); for the other parameters see `set_precision`.

        Args:
            quantization: of `quantizable_layers`; None leaves them in `dtype`.

        Raises:
            CheckpointError: a tensor is missing or has another shape than `config` says.
            ConfigError: see `Execution.choose`.
        """
        execution = Execution.choose(device, dtype, vocoder_dtype, kernels, cuda_graphs)
        with torch.device("meta"):
            model = cls(config)
        model.read(weights, device, execution, quantization)
        model.execution, model._asked = execution, (kernels, cuda_graphs)
        return model

    def set_precision(
        self,
        dtype: torch.dtype,
        vocoder_dtype: torch.dtype,
        kernels: AskedKernels | None = None,
        cuda_graphs: bool | None = None,
    ) -> None:
        """Hold encoder and estimator in `dtype` and the vocoder's convolutions in `vocoder_dtype`.

        The flow's state and time path, the speaker projection, pitch, source and spectra stay float32. What comes of
        it all is in `execution`.

        Args:
            kernels: "torch", "triton", or "auto" for what suits device and dtype; None leaves what was asked before.
            cuda_graphs: likewise; None leaves what was asked before, which unasked means on CUDA.

        Raises:
            ConfigError: see `Execution.choose`; nothing has changed then.
        """
        asked = (kernels or self._asked[0], self._asked[1] if cuda_graphs is None else cuda_graphs)
        execution = Execution.choose(self.device, dtype, vocoder_dtype, *asked)
        self.cast(execution)
        self.execution, self._asked = execution, asked
        self._token_to_mel = self._mel_to_wave = self._chunks = None  # made from the weights

    @property
    def token_to_mel(self) -> TokenToMel:
        """The flow as `execution` says."""
        if self._token_to_mel is None:
            self._token_to_mel = TokenToMel(self.config.flow, self.encoder, self.estimator, self.device, self.execution)
        return self._token_to_mel

    @property
    def mel_to_wave(self) -> MelToWave:
        """The vocoder as `execution` says."""
        if self._mel_to_wave is None:
            self._mel_to_wave = MelToWave(self.vocoder, self.execution)
        return self._mel_to_wave

    @property
    def chunks(self) -> ChunkRenderer:
        """Flow and vocoder for chunks, as `execution` says."""
        if self._chunks is None:
            self._chunks = ChunkRenderer(self.token_to_mel, self.mel_to_wave, self.noise_source)
        return self._chunks

    def frames(self, speech_tokens: int, prompt: FlowPrompt) -> tuple[int, int]:
        """Mel frames of prompt and generation together, and of the generation alone; see `mel_frames`."""
        return mel_frames(speech_tokens, prompt)

    def frames_computed(self, lengths: Sequence[int]) -> int:
        """See `TokenToMel.frames_computed`."""
        return self.token_to_mel.frames_computed(lengths)

    @torch.inference_mode()
    @ieee_float32()
    def record_graphs(self, most_frames: int, longest: int, chunks: int = 0) -> int:
        """See `TokenToMel.record_graphs`; and those for batches of up to so many chunks."""
        recorded = self.token_to_mel.record_graphs(most_frames, longest)
        return recorded + (self.chunks.record_graphs(chunks) if chunks else 0)

    @property
    def noise_source(self) -> NoiseSource:
        """Draws noise, also for a part of an utterance."""
        hift = self.config.hift
        return NoiseSource(
            hift.num_mels, hift.harmonics, hift.samples_per_frame, self.device, kernels=self.execution.kernels
        )

    def draw_noise(self, seed: int, speech_tokens: int, prompt: FlowPrompt) -> S3GenNoise:
        """The noise of an utterance of that many speech tokens; the same seed gives the same audio.

        Of a longer utterance of the same seed, the first frames have the same noise.

        Args:
            seed: 0 to 2**63 - 1.

        Raises:
            GenerationError: there are no speech tokens.
        """
        require_speech(speech_tokens)
        _, generated = self.frames(speech_tokens, prompt)
        return self.noise_source.utterance(seed, len(prompt.mel), generated)

    def synthesize(
        self, requests: Sequence[S3GenRequest], steps: int = 10, between: Callable[[], object] | None = None
    ) -> list[torch.Tensor]:
        """Waveforms at 24 kHz, one [samples] float32 within +-0.99 for each request, on the model's device.

        Args:
            requests: utterances of any lengths and voices.
            steps: Euler steps of the flow.
            between: called before each of them and before the vocoder; what it raises ends the work.

        Raises:
            GenerationError: a request has no speech tokens, or an id outside the codebook; half precision overflowed.
            ConfigError: noise of the wrong shape, or fewer than one step.
        """
        mels, waves = self._launch(requests, steps, between)
        self._require_finite({"mel": mels, "waveform": waves})
        return waves

    def launch(
        self, requests: Sequence[S3GenRequest], steps: int = 10, between: Callable[[], object] | None = None
    ) -> Callable[[], list[torch.Tensor]]:
        """`synthesize` in two parts: the device is given all the work now, and what is returned waits for it.

        While one thread waits, another may launch what comes next. The samples come on the CPU; those of a batch may
        share a block of memory.

        Raises:
            ConfigError, GenerationError: as `synthesize`; an overflow is told by the second part.
        """
        mels, waves = self._launch(requests, steps, between)
        require_finite = self._finite({"mel": mels, "waveform": waves})
        fetched = RowsToHost(waves)

        def heard() -> list[torch.Tensor]:
            rows = fetched.wait()
            require_finite()
            return rows

        return heard

    def _launch(
        self, requests: Sequence[S3GenRequest], steps: int, between: Callable[[], object] | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Mels and waveforms on the device."""
        mels = self._generated(self._flow(requests, steps, between), requests)
        if between is not None:
            between()
        return mels, self.waveform(mels, [request.noise for request in requests])

    def mel(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """The flow alone: one mel [generated frames, mels] float32 for each request. Raises as `synthesize`."""
        return self._generated(self.flow(requests, steps), requests)

    def flow(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """`mel` with the frames in front that stand for the prompt: [prompt + generated frames, mels] each."""
        flows = self._flow(requests, steps)
        self._require_finite({"mel": flows})
        return flows

    @torch.inference_mode()
    @ieee_float32()
    def waveform(self, mels: Sequence[torch.Tensor], noises: Sequence[S3GenNoise]) -> list[torch.Tensor]:
        """The vocoder alone, with the fade at the start: a [samples] float32 for each mel [frames, mels]."""
        return self.mel_to_wave(mels, noises, self.device)

    def start_stream(self, prompt: FlowPrompt, seed: int) -> StreamState:
        """An utterance of which no chunk is rendered yet; `seed` as for `draw_noise`."""
        return StreamState.start(self.config, self.device, prompt, seed)

    def render_chunks(
        self, chunks: Sequence[StreamChunk], steps: int = 10, between: Callable[[], object] | None = None
    ) -> list[tuple[torch.Tensor, StreamState]]:
        """The next chunks of utterances in streams: for each the samples at 24 kHz that are certain now, and its state.

        The samples are float32 on the CPU; those of a batch may share a block of memory.

        The samples of all chunks together are as many as `synthesize` gives, from the same noise. What the flow makes
        of a chunk depends on how the utterance is cut into chunks, and on no other utterance.

        Raises:
            GenerationError, ConfigError: as `synthesize`, and for what `StreamChunk.check` refuses.
        """
        return self.launch_chunks(chunks, steps, between)()

    @torch.inference_mode()
    @ieee_float32()
    def launch_chunks(
        self, chunks: Sequence[StreamChunk], steps: int = 10, between: Callable[[], object] | None = None
    ) -> Callable[[], list[tuple[torch.Tensor, StreamState]]]:
        """`render_chunks` in two parts, as `launch` is `synthesize`."""
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, found {steps}")
        if not chunks:
            return list
        for chunk in chunks:
            chunk.check(self.config)
        voices = [self._prepared(chunk.state.prompt) for chunk in chunks]
        rendered = self.chunks.launch(chunks, voices, steps, between)

        def heard() -> list[tuple[torch.Tensor, StreamState]]:
            found = rendered()
            for place, what in enumerate(("mel", "waveform")):
                self._refuse(what, [i for i, one in enumerate(found) if not one.finite[place]])
            return [(one.wave, one.state) for one in found]

        return heard

    def _generated(self, flows: list[torch.Tensor], requests: Sequence[S3GenRequest]) -> list[torch.Tensor]:
        return [flow[len(request.prompt.mel) :] for flow, request in zip(flows, requests, strict=True)]

    @torch.inference_mode()
    @ieee_float32()
    def _flow(
        self, requests: Sequence[S3GenRequest], steps: int, between: Callable[[], object] | None = None
    ) -> list[torch.Tensor]:
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, found {steps}")
        if not requests:
            return []
        for request in requests:
            check_request(request, self.config)
        return self.token_to_mel(
            [request.speech_tokens for request in requests],
            [self._prepared(request.prompt) for request in requests],
            [request.noise.z for request in requests],
            steps,
            between,
        )

    def _prepared(self, prompt: FlowPrompt) -> PreparedPrompt:
        return self._prompts.get(prompt.key, lambda: self._prepare(prompt))

    @torch.inference_mode()
    def _prepare(self, prompt: FlowPrompt) -> PreparedPrompt:
        check_ids("prompt", prompt.tokens, self.config)
        xvector = to_device(prompt.xvector.float(), self.device)
        return PreparedPrompt(
            tokens=to_device(prompt.tokens, self.device),
            mel=to_device(prompt.mel.float(), self.device),
            speaker=self.speaker(F.normalize(xvector, dim=-1)),
        )

    def _require_finite(self, parts: dict[str, Sequence[torch.Tensor]]) -> None:
        """Wait for the device, and raise `GenerationError` where a row is not finite."""
        self._finite(parts)()

    def _finite(self, parts: dict[str, Sequence[torch.Tensor]]) -> Callable[[], None]:
        """`_require_finite` in two parts: the second waits. In half precision alone, of which float16 may overflow."""
        dtypes = {"mel": self.execution.dtype, "waveform": self.execution.vocoder_dtype}
        halves = {what: rows for what, rows in parts.items() if rows and dtypes[what] != torch.float32}
        if not halves:
            return lambda: None
        flags = ToHost(torch.stack([torch.cat(list(rows)).isfinite().all() for rows in halves.values()]))

        def require() -> None:
            for what, fine in zip(halves, flags.wait().tolist(), strict=True):
                if not fine:
                    self._refuse(what, [i for i, row in enumerate(halves[what]) if not bool(row.isfinite().all())])

        return require

    def _refuse(self, what: str, wrong: Sequence[int]) -> None:
        """Raise `GenerationError` where the mel or the waveform of any row is wrong."""
        dtype = self.execution.dtype if what == "mel" else self.execution.vocoder_dtype
        if not wrong:
            return
        part = "s3gen dtype" if what == "mel" else "vocoder dtype"
        raise GenerationError(
            f"the {what} of utterance {', '.join(map(str, wrong))} of this batch is not finite in "
            f"{str(dtype).removeprefix('torch.')}; use {part} bfloat16 or float32"
        )
