"""S3Gen: speech tokens and a voice to a waveform, many utterances in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from chatterbox_vllm.caches.memory import MemoryCache
from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.cuda.graphs import GraphedFunction
from chatterbox_vllm.cuda.precision import ieee_float32
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.quantization.modules import QuantizedLinear, quantize_layers
from chatterbox_vllm.quantization.storage import Scheme
from chatterbox_vllm.s3gen.execution import Execution
from chatterbox_vllm.s3gen.flow.encoder import UPSAMPLING, Block, FlowEncoder
from chatterbox_vllm.s3gen.flow.estimator import Estimator, TransformerBlock
from chatterbox_vllm.s3gen.flow.solver import Velocity, solve, time_span, velocity_of
from chatterbox_vllm.s3gen.noise import S3GenNoise, draw_noise
from chatterbox_vllm.s3gen.packing import Packing
from chatterbox_vllm.s3gen.prompt import FlowPrompt, PreparedPrompt
from chatterbox_vllm.s3gen.ragged import Padded, padding_mask
from chatterbox_vllm.s3gen.vocoder.hift import HiFT
from chatterbox_vllm.s3gen.vocoder.source import SAMPLE_RATE

AskedKernels = Literal["auto", "torch", "triton"]

_FADE_SAMPLES = SAMPLE_RATE // 50  # 20 ms of silence, then as long a fade
_VOCODER_ROWS = {"torch": 8, "triton": 32}  # at once on CUDA, by kernels
_PROMPTS_BYTES = 64 << 20  # kept on the device; a reference of 10 s takes 0.16 MB


@dataclass(frozen=True)
class S3GenRequest:
    """One utterance: speech tokens [n] int64, the prompt to speak them after, and its noise (`S3Gen.draw_noise`)."""

    speech_tokens: torch.Tensor
    prompt: FlowPrompt
    noise: S3GenNoise


class S3Gen(nn.Module):
    """Flow (encoder, estimator) and vocoder of one checkpoint, on one device.

    A row of a batch comes out as it would alone: in float32 up to the rounding of sums in another order, in half
    precision up to less than that differs from float32 (a mel by 1.5e-3 in float16, 1.1e-2 in bfloat16, relative L2).
    """

    def __init__(self, config: S3GenConfig):
        super().__init__()
        self.config = config
        self.encoder = FlowEncoder(config.flow)
        self.speaker = nn.Linear(config.xvector.embedding_size, config.flow.num_mels)
        self.estimator = Estimator(config.flow)
        self.vocoder = HiFT(config.hift)
        self.requires_grad_(False)
        self.execution = Execution.choose("cpu", torch.float32, torch.float32)
        self._asked: tuple[AskedKernels, bool | None] = ("auto", None)
        self._prompts: MemoryCache[str, PreparedPrompt] = MemoryCache(lambda prompt: prompt.bytes, _PROMPTS_BYTES)
        self._velocity: Velocity | None = None
        self._packed_vocoder: Callable[..., torch.Tensor] | None = None

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
            quantization: of `quantizable_layers`, each as soon as it is read; None leaves them in `dtype`.

        Raises:
            CheckpointError: a tensor is missing or has another shape than `config` says.
            ConfigError: see `Execution.choose`.
        """
        execution = Execution.choose(device, dtype, vocoder_dtype, kernels, cuda_graphs)
        with torch.device("meta"):
            model = cls(config)
        if quantization is not None:
            quantize_layers(model, model.quantizable_layers(), quantization)
        model._cast(execution)
        for prefix, module in model.published_parts().items():
            load_module(module, weights, prefix, device)
        model.execution, model._asked = execution, (kernels, cuda_graphs)
        return model

    def published_parts(self) -> dict[str, nn.Module]:
        """Submodules by the prefix of their keys in the published file."""
        return {
            "flow.": self.encoder,
            "flow.spk_embed_affine_layer.": self.speaker,
            "flow.decoder.estimator.": self.estimator,
            "mel2wav.": self.vocoder,
        }

    def quantizable_layers(self) -> list[str]:
        """Names of the layers whose weights may be quantized: attention and feed-forward of encoder and estimator.

        Embeddings, input and output layers, the time path, convolutions and the vocoder are not among them.
        """
        return [
            f"{name}.{inner}"
            for name, block in self.named_modules()
            if isinstance(block, (Block, TransformerBlock))
            for inner, layer in block.named_modules()
            if isinstance(layer, (nn.Linear, QuantizedLinear))
        ]

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
        self._cast(execution)
        self.execution, self._asked = execution, asked

    def _cast(self, execution: Execution) -> None:
        self.encoder.to(execution.dtype)
        self.estimator.cast(execution.dtype)
        self.vocoder.cast(execution.vocoder_dtype)
        self._velocity = self._packed_vocoder = None  # made from the weights

    @property
    def device(self) -> torch.device:
        """Where the weights are and the results will be."""
        return self.speaker.weight.device

    def frames(self, speech_tokens: int, prompt: FlowPrompt) -> tuple[int, int]:
        """Mel frames of prompt and generation together, and of the generation alone, for that many speech tokens.

        With an odd frame at the prompt's end the generation is one frame shorter.
        """
        total = UPSAMPLING * (len(prompt.tokens) + speech_tokens)
        return total, total - len(prompt.mel)

    def draw_noise(self, generator: torch.Generator, speech_tokens: int, prompt: FlowPrompt) -> S3GenNoise:
        """The noise of an utterance of that many speech tokens; the same generator state gives the same audio.

        Raises:
            GenerationError: there are no speech tokens.
        """
        if speech_tokens < 1:
            raise GenerationError("there are no speech tokens to speak; was the text empty, or did it end at once?")
        total, generated = self.frames(speech_tokens, prompt)
        hift = self.config.hift
        samples = generated * hift.samples_per_frame
        return draw_noise(generator, total, samples, self.device, mels=hift.num_mels, harmonics=hift.harmonics)

    def synthesize(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """Waveforms at 24 kHz, one [samples] float32 within +-0.99 for each request, on the model's device.

        Args:
            requests: utterances of any lengths and voices.
            steps: Euler steps of the flow.

        Raises:
            GenerationError: a request has no speech tokens, or an id outside the codebook; half precision overflowed.
            ConfigError: noise of the wrong shape, or fewer than one step.
        """
        mels = self._generated(self._flow(requests, steps), requests)
        waves = self.waveform(mels, [request.noise for request in requests])
        # The one place where the host waits for the device.
        self._require_finite("mel", mels, self.execution.dtype)
        self._require_finite("waveform", waves, self.execution.vocoder_dtype)
        return waves

    def mel(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """The flow alone: one mel [generated frames, mels] float32 for each request. Raises as `synthesize`."""
        return self._generated(self.flow(requests, steps), requests)

    def flow(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """`mel` with the frames in front that stand for the prompt: [prompt + generated frames, mels] each."""
        flows = self._flow(requests, steps)
        self._require_finite("mel", flows, self.execution.dtype)
        return flows

    def _generated(self, flows: list[torch.Tensor], requests: Sequence[S3GenRequest]) -> list[torch.Tensor]:
        return [flow[len(request.prompt.mel) :] for flow, request in zip(flows, requests, strict=True)]

    @torch.inference_mode()
    @ieee_float32()
    def _flow(self, requests: Sequence[S3GenRequest], steps: int) -> list[torch.Tensor]:
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, found {steps}")
        if not requests:
            return []
        for request in requests:
            self._check(request)
        config, device, dtype = self.config.flow, self.device, self.execution.dtype
        prompts = [self._prepared(request.prompt) for request in requests]
        speech = torch.cat([request.speech_tokens for request in requests]).to(device)
        speech = speech.split([len(request.speech_tokens) for request in requests])
        tokens = [torch.cat([prompt.tokens, own]) for prompt, own in zip(prompts, speech, strict=True)]
        lengths = [UPSAMPLING * len(row) for row in tokens]

        mu = self.encoder(pad_sequence(tokens, batch_first=True), padding_mask([len(row) for row in tokens], device))
        speaker = torch.stack([prompt.speaker for prompt in prompts])[:, None].expand(-1, mu.shape[1], -1)
        mels = pad_sequence([prompt.mel for prompt in prompts], batch_first=True)
        mels = F.pad(mels, (0, 0, 0, mu.shape[1] - mels.shape[1]))
        z = pad_sequence([request.noise.z.to(device).T for request in requests], batch_first=True)

        packed = self.execution.kernels == "triton"
        streams = 1 if config.meanflow else 2
        rows = (Packing if packed else Padded).of(lengths, device, streams, bucketed=self.execution.cuda_graphs)
        span = time_span(steps, cosine=not config.meanflow).to(device)
        mel = solve(
            self._velocity_in_force(),
            z=rows.pack(z),
            condition=rows.pack(torch.cat([part.to(dtype) for part in (mu, speaker, mels)], dim=-1)),
            span=span,
            times=self.estimator.time_table(span[:-1], span[1:])[:, None],
            layout=rows.layout,
        )
        return rows.unpack(mel)

    def _velocity_in_force(self) -> Velocity:
        if self._velocity is None:
            estimator: Callable[..., torch.Tensor] = self.estimator
            if self.execution.kernels == "triton":
                from chatterbox_vllm.s3gen.flow.packed_estimator import PackedEstimator  # imports triton

                estimator = PackedEstimator(self.estimator)
            velocity = velocity_of(estimator, None if self.config.flow.meanflow else self.config.flow.cfg_rate)
            self._velocity = GraphedFunction(velocity) if self.execution.cuda_graphs else velocity
        return self._velocity

    @torch.inference_mode()
    @ieee_float32()
    def waveform(self, mels: Sequence[torch.Tensor], noises: Sequence[S3GenNoise]) -> list[torch.Tensor]:
        """The vocoder alone, with the fade at the start: a [samples] float32 for each mel [frames, mels]."""
        samples = self.config.hift.samples_per_frame
        waves: list[torch.Tensor] = [torch.empty(0)] * len(mels)
        vocoder = self._vocoder_in_force()
        for group in self._vocoder_groups([len(mel) for mel in mels]):
            lengths = [len(mels[i]) for i in group]
            noise = pad_sequence([noises[i].source.T.to(self.device) for i in group], batch_first=True)
            spoken = vocoder(
                pad_sequence([mels[i] for i in group], batch_first=True).transpose(1, 2),
                lengths,
                phase=torch.stack([noises[i].phase for i in group]).to(self.device),
                noise=noise.transpose(1, 2),
            )
            for i, wave, length in zip(group, spoken, lengths, strict=True):
                waves[i] = fade_in(wave[: length * samples])
        return waves

    def _vocoder_in_force(self) -> Callable[..., torch.Tensor]:
        if self.execution.vocoder_kernels == "torch":
            return self.vocoder
        if self._packed_vocoder is None:
            from chatterbox_vllm.s3gen.vocoder.packed_hift import PackedHiFT  # imports triton

            self._packed_vocoder = PackedHiFT(self.vocoder)
        return self._packed_vocoder

    def _vocoder_groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of rows to pad together: all of them; on CUDA, where a few fill the device, those of like lengths."""
        if not lengths:
            return []
        if self.device.type != "cuda":
            return [list(range(len(lengths)))]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        size = _VOCODER_ROWS[self.execution.vocoder_kernels]
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _prepared(self, prompt: FlowPrompt) -> PreparedPrompt:
        return self._prompts.get(prompt.key, lambda: self._prepare(prompt))

    @torch.inference_mode()
    def _prepare(self, prompt: FlowPrompt) -> PreparedPrompt:
        self._check_ids("prompt", prompt.tokens)
        xvector = prompt.xvector.to(self.device, torch.float32)
        return PreparedPrompt(
            tokens=prompt.tokens.to(self.device),
            mel=prompt.mel.to(self.device, torch.float32),
            speaker=self.speaker(F.normalize(xvector, dim=-1)),
        )

    def _require_finite(self, what: str, rows: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        """In half precision, of which float16 may overflow; one wait for the device where all is well."""
        if dtype == torch.float32 or not rows or bool(torch.cat(list(rows)).isfinite().all()):
            return
        wrong = [i for i, row in enumerate(rows) if not bool(row.isfinite().all())]
        part = "s3gen dtype" if what == "mel" else "vocoder dtype"
        raise GenerationError(
            f"the {what} of utterance {', '.join(map(str, wrong))} of this batch is not finite in "
            f"{str(dtype).removeprefix('torch.')}; use {part} bfloat16 or float32"
        )

    def _check(self, request: S3GenRequest) -> None:
        tokens = request.speech_tokens
        if len(tokens) == 0:
            raise GenerationError("there are no speech tokens to speak; was the text empty, or did it end at once?")
        self._check_ids("speech", tokens)
        total, generated = self.frames(len(tokens), request.prompt)
        hift = self.config.hift
        expected = {
            "z": (hift.num_mels, total),
            "phase": (hift.harmonics + 1,),
            "source": (hift.harmonics + 1, generated * hift.samples_per_frame),
        }
        for name, shape in expected.items():
            found = tuple(getattr(request.noise, name).shape)
            if found != shape:
                raise ConfigError(f"noise.{name} has shape {found}, this utterance needs {shape}; use S3Gen.draw_noise")

    def _check_ids(self, name: str, ids: torch.Tensor) -> None:
        lowest, highest = (int(v) for v in ids.aminmax()) if len(ids) else (0, 0)
        if lowest < 0 or highest >= self.config.flow.vocab_size:
            raise GenerationError(
                f"{name} token {lowest if lowest < 0 else highest} is outside the codebook "
                f"(0 to {self.config.flow.vocab_size - 1}); drop control tokens before synthesis"
            )


def fade_in(wave: torch.Tensor) -> torch.Tensor:
    """Silence the first 20 ms of a [samples] waveform and raise the next 20 ms by a cosine.

    The published remedy against sound of the reference clip spilling over. A shorter waveform gets the part it has.
    """
    ramp = (torch.cos(torch.linspace(math.pi, 0, _FADE_SAMPLES, device=wave.device)) + 1) / 2
    gain = torch.cat([torch.zeros_like(ramp), ramp])[: len(wave)]
    return torch.cat([wave[: len(gain)] * gain, wave[len(gain) :]])
