"""S3Gen: speech tokens and a voice to a waveform, many utterances in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from chatterbox_vllm.checkpoint import Weights, load_module
from chatterbox_vllm.config import S3GenConfig
from chatterbox_vllm.errors import ConfigError, GenerationError
from chatterbox_vllm.models.precision import ieee_float32
from chatterbox_vllm.models.s3gen.encoder import UPSAMPLING, FlowEncoder
from chatterbox_vllm.models.s3gen.estimator import Estimator
from chatterbox_vllm.models.s3gen.hift import HiFT
from chatterbox_vllm.models.s3gen.noise import S3GenNoise, draw_noise
from chatterbox_vllm.models.s3gen.ragged import padding_mask
from chatterbox_vllm.models.s3gen.solver import solve
from chatterbox_vllm.models.s3gen.source import SAMPLE_RATE

_FADE_SAMPLES = SAMPLE_RATE // 50  # 20 ms of silence, then as long a fade


class S3GenVoice(Protocol):
    """What S3Gen needs to know of a reference clip."""

    @property
    def prompt_tokens(self) -> torch.Tensor:
        """[p] int64 speech tokens of the clip."""

    @property
    def prompt_mel(self) -> torch.Tensor:
        """[frames, mels] float32 mel of the clip, 2p frames, or one more where the clip ends in half a token."""

    @property
    def xvector(self) -> torch.Tensor:
        """[192] float32 x-vector of the clip."""


@dataclass(frozen=True)
class S3GenRequest:
    """One utterance: speech tokens [n] int64, the voice to speak them in, and its noise (`S3Gen.draw_noise`)."""

    speech_tokens: torch.Tensor
    voice: S3GenVoice
    noise: S3GenNoise


class S3Gen(nn.Module):
    """Flow (encoder, estimator) and vocoder of one checkpoint, on one device.

    A row of a batch comes out as it would alone, up to the rounding of float32 sums in another order.
    """

    def __init__(self, config: S3GenConfig):
        super().__init__()
        self.config = config
        self.encoder = FlowEncoder(config.flow)
        self.speaker = nn.Linear(config.xvector.embedding_size, config.flow.num_mels)
        self.estimator = Estimator(config.flow)
        self.vocoder = HiFT(config.hift)
        self.requires_grad_(False)

    @classmethod
    def from_weights(
        cls,
        config: S3GenConfig,
        weights: Weights,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        vocoder_dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load from `s3gen.safetensors` (enrolment nets left out); for the dtypes see `set_precision`.

        Raises:
            CheckpointError: a tensor is missing or has another shape than `config` says.
        """
        with torch.device("meta"):
            model = cls(config)
        model.set_precision(dtype, vocoder_dtype)
        for prefix, module in model.published_parts().items():
            load_module(module, weights, prefix, device)
        return model

    def published_parts(self) -> dict[str, nn.Module]:
        """Submodules by the prefix of their keys in the published file."""
        return {
            "flow.": self.encoder,
            "flow.spk_embed_affine_layer.": self.speaker,
            "flow.decoder.estimator.": self.estimator,
            "mel2wav.": self.vocoder,
        }

    def set_precision(self, dtype: torch.dtype, vocoder_dtype: torch.dtype) -> None:
        """Hold encoder and estimator in `dtype` and the vocoder's convolutions in `vocoder_dtype`.

        The flow's state and time path, the speaker projection, pitch, source and spectra stay float32.
        """
        self.encoder.to(dtype)
        self.estimator.cast(dtype)
        self.vocoder.cast(vocoder_dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are and the results will be."""
        return self.speaker.weight.device

    def frames(self, speech_tokens: int, voice: S3GenVoice) -> tuple[int, int]:
        """Mel frames of prompt and generation together, and of the generation alone, for that many speech tokens.

        With an odd frame at the prompt's end the generation is one frame shorter.
        """
        total = UPSAMPLING * (len(voice.prompt_tokens) + speech_tokens)
        return total, total - len(voice.prompt_mel)

    def draw_noise(self, generator: torch.Generator, speech_tokens: int, voice: S3GenVoice) -> S3GenNoise:
        """The noise of an utterance of that many speech tokens; the same generator state gives the same audio.

        Raises:
            GenerationError: there are no speech tokens.
        """
        if speech_tokens < 1:
            raise GenerationError("there are no speech tokens to speak; was the text empty, or did it end at once?")
        total, generated = self.frames(speech_tokens, voice)
        hift = self.config.hift
        samples = generated * hift.samples_per_frame
        return draw_noise(generator, total, samples, self.device, mels=hift.num_mels, harmonics=hift.harmonics)

    def synthesize(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """Waveforms at 24 kHz, one [samples] float32 within +-0.99 for each request, on the model's device.

        Args:
            requests: utterances of any lengths and voices.
            steps: Euler steps of the flow.

        Raises:
            GenerationError: a request has no speech tokens, or an id outside the codebook.
            ConfigError: noise of the wrong shape, or fewer than one step.
        """
        return self.waveform(self.mel(requests, steps), [request.noise for request in requests])

    def mel(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """The flow alone: one mel [generated frames, mels] float32 for each request. Raises as `synthesize`."""
        flows = self.flow(requests, steps)
        return [flow[len(request.voice.prompt_mel) :] for flow, request in zip(flows, requests, strict=True)]

    @torch.inference_mode()
    @ieee_float32()
    def flow(self, requests: Sequence[S3GenRequest], steps: int = 10) -> list[torch.Tensor]:
        """`mel` with the frames in front that stand for the prompt: [prompt + generated frames, mels] each."""
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, found {steps}")
        if not requests:
            return []
        for request in requests:
            self._check(request)
        device = self.device
        voices = [request.voice for request in requests]
        rows = [torch.cat([t.to(device) for t in (r.voice.prompt_tokens, r.speech_tokens)]) for r in requests]
        prompts = [voice.prompt_mel.to(device, torch.float32) for voice in voices]
        padding = padding_mask([len(row) for row in rows], device)

        mu = self.encoder(pad_sequence(rows, batch_first=True), padding)
        speaker = self.speaker(F.normalize(torch.stack([v.xvector.to(device, torch.float32) for v in voices]), dim=-1))
        prompt = pad_sequence(prompts, batch_first=True)
        mel = solve(
            self.estimator,
            z=pad_sequence([request.noise.z.to(device).T for request in requests], batch_first=True),
            mu=mu,
            speaker=speaker,
            prompt=F.pad(prompt, (0, 0, 0, mu.shape[1] - prompt.shape[1])),
            padding=None if padding is None else padding.repeat_interleave(UPSAMPLING, dim=1),
            steps=steps,
            cfg_rate=self.config.flow.cfg_rate,
            meanflow=self.config.flow.meanflow,
        )
        return [row[: UPSAMPLING * len(tokens)] for row, tokens in zip(mel, rows, strict=True)]

    @torch.inference_mode()
    @ieee_float32()
    def waveform(self, mels: Sequence[torch.Tensor], noises: Sequence[S3GenNoise]) -> list[torch.Tensor]:
        """The vocoder alone, with the fade at the start: a [samples] float32 for each mel [frames, mels]."""
        if not mels:
            return []
        lengths = [len(mel) for mel in mels]
        waves = self.vocoder(
            pad_sequence(list(mels), batch_first=True).transpose(1, 2),
            lengths,
            phase=torch.stack([noise.phase for noise in noises]).to(self.device),
            noise=pad_sequence([noise.source.T.to(self.device) for noise in noises], batch_first=True).transpose(1, 2),
        )
        samples = self.config.hift.samples_per_frame
        return [fade_in(wave[: length * samples]) for wave, length in zip(waves, lengths, strict=True)]

    def _check(self, request: S3GenRequest) -> None:
        tokens = request.speech_tokens
        if len(tokens) == 0:
            raise GenerationError("there are no speech tokens to speak; was the text empty, or did it end at once?")
        for name, ids in (("speech", tokens), ("prompt", request.voice.prompt_tokens)):
            lowest, highest = (int(v) for v in ids.aminmax()) if len(ids) else (0, 0)
            if lowest < 0 or highest >= self.config.flow.vocab_size:
                raise GenerationError(
                    f"{name} token {lowest if lowest < 0 else highest} is outside the codebook "
                    f"(0 to {self.config.flow.vocab_size - 1}); drop control tokens before synthesis"
                )
        total, generated = self.frames(len(tokens), request.voice)
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


def fade_in(wave: torch.Tensor) -> torch.Tensor:
    """Silence the first 20 ms of a [samples] waveform and raise the next 20 ms by a cosine.

    The published remedy against sound of the reference clip spilling over. A shorter waveform gets the part it has.
    """
    ramp = (torch.cos(torch.linspace(math.pi, 0, _FADE_SAMPLES, device=wave.device)) + 1) / 2
    gain = torch.cat([torch.zeros_like(ramp), ramp])[: len(wave)]
    return torch.cat([wave[: len(gain)] * gain, wave[len(gain) :]])
