"""How a reference clip becomes a voice."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chatterbox_vllm.audio.features import RATE_16K, RATE_24K
from chatterbox_vllm.audio.loudness import at_loudness
from chatterbox_vllm.audio.resample import resample
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.cpu.helpers import give_back_helpers
from chatterbox_vllm.cuda.precision import ieee_float32
from chatterbox_vllm.quantization.modules import quantize_layers
from chatterbox_vllm.quantization.storage import Scheme
from chatterbox_vllm.t3.speaker import SpeakerConditioning
from chatterbox_vllm.voices.hearing import Hearing, HearingNets
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder
from chatterbox_vllm.voices.reference import check_reference
from chatterbox_vllm.voices.voice import Voice


@dataclass(frozen=True)
class _EnrolmentNets(HearingNets):
    voice_encoder: VoiceEncoder


class VoiceEnroller:
    """Makes voices from reference audio, in float32.

    The nets (132 M parameters, 0.5 GB) are loaded at the first use and serve nothing else: `release` frees them.
    Safe to use from several threads.

    Args:
        config: dimensions of the checkpoint.
        weights_s3gen: its `s3gen` file.
        weights_ve: its `ve` file.
        device: where the nets run; the CPU by default, so that they take no accelerator memory.
        quantization: of the voice encoder's weights.
        keep: whether the nets stay loaded after an enrolment.

    Attributes:
        hearing: the nets of the `s3gen` file, which a conversion works with alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights_s3gen: Weights,
        weights_ve: Weights,
        device: torch.device | str = "cpu",
        quantization: Scheme | None = None,
        keep: bool = True,
    ):
        self.config = config
        self.quantization = quantization
        self.keep = keep
        self.device = torch.device(device)
        self.hearing = Hearing(config, weights_s3gen, device, keep)
        self._weights_ve = weights_ve
        self._voice_encoder: VoiceEncoder | None = None
        self._lock = threading.Lock()

    @torch.no_grad()
    @ieee_float32()
    def enrol(self, wave: np.ndarray, rate: int, norm_loudness: bool | None = None) -> Voice:
        """The voice of a reference clip.

        As published: the clip goes to 24 kHz, to the loudness of the model's recipe where that has one, and from there
        to 16 kHz. The flow's prompt and x-vector come from its first 10 s, T3's speech prompt from as much as the
        recipe says, the speaker embedding from all of it.

        Args:
            wave: floating-point mono [samples], in -1..1.
            rate: its rate in Hz.
            norm_loudness: see `EnrolmentConfig.loudness_of`.

        Raises:
            AudioError: the clip is no such wave, is shorter than 0.5 s (or than the recipe wants) or longer than 600 s,
                or is silent.
            ConfigError: `norm_loudness` asks for what the recipe does not do.
            CheckpointError: the nets could not be loaded.
        """
        loudness = self.config.enrolment.loudness_of(norm_loudness)
        wave = check_reference(wave, rate, self.config.enrolment.least_seconds)
        nets = self._load()
        try:
            return self._enrolled(nets, wave, rate, loudness)
        finally:
            give_back_helpers()
            if not self.keep:
                self.release()

    def read(self, path: Path) -> Voice:
        """A saved voice.

        Raises:
            CheckpointError: it is damaged, or made for another model.
        """
        return Voice.load(path, self.config)

    def _enrolled(self, nets: _EnrolmentNets, wave: np.ndarray, rate: int, loudness: float | None) -> Voice:
        recipe = self.config.enrolment
        wave_24k = resample(wave, rate, RATE_24K)
        if loudness is not None:
            wave_24k = at_loudness(wave_24k, RATE_24K, loudness)
        wave_16k = torch.from_numpy(resample(wave_24k, RATE_24K, RATE_16K)).to(self.device)
        speech_prompt = nets.speech_tokenizer.tokens(
            wave_16k[: recipe.speech_prompt_seconds * RATE_16K], max_tokens=self.config.t3.speech_prompt_tokens
        )
        return Voice(
            SpeakerConditioning(nets.voice_encoder.embed(wave_16k).cpu(), speech_prompt.cpu()),
            self.hearing.prompt(nets, wave_24k),
            self.config.codebook,
            recipe.recipe,
        )

    @property
    def loaded_voice_encoder(self) -> VoiceEncoder | None:
        """The voice encoder as it runs, where the nets are in memory."""
        return self._voice_encoder

    @property
    def is_loaded(self) -> bool:
        """Whether any of the nets is in memory."""
        return self._voice_encoder is not None or self.hearing.is_loaded

    def release(self) -> None:
        """Free the nets; the next use loads them again."""
        with self._lock:
            self._voice_encoder = None
        self.hearing.release()

    def _load(self) -> _EnrolmentNets:
        with self._lock:
            if self._voice_encoder is None:
                with torch.device("meta"):
                    encoder = VoiceEncoder(self.config.voice_encoder)
                if self.quantization is not None:
                    quantize_layers(encoder, encoder.quantizable_layers(), self.quantization)
                load_module(encoder, self._weights_ve, "", self.device)
                self._voice_encoder = encoder
            heard = self.hearing.load_nets()
            return _EnrolmentNets(heard.speech_tokenizer, heard.xvector, self._voice_encoder)
