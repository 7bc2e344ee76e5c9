"""What S3Gen's own file hears in audio: the flow's prompt of a reference clip, and the speech tokens of a recording."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from chatterbox_vllm.audio.features import HOP_16K, RATE_16K, RATE_24K, prompt_mel
from chatterbox_vllm.audio.loudness import at_loudness
from chatterbox_vllm.audio.resample import resample, sinc_resample
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.cuda.graphs import recording
from chatterbox_vllm.cuda.precision import ieee_float32
from chatterbox_vllm.errors import CheckpointError, ConfigError
from chatterbox_vllm.s3gen.prompt import PROMPT_SECONDS, FlowPrompt
from chatterbox_vllm.voices.nets.speech_tokenizer import SpeechTokenizer
from chatterbox_vllm.voices.nets.xvector import CAMPPlus
from chatterbox_vllm.voices.reference import check_reference
from chatterbox_vllm.voices.saved import read_voice


class Speaker(Protocol):
    """Who is to be heard: a `Voice`, or a `Target`, which is all of one that S3Gen needs."""

    @property
    def prompt(self) -> FlowPrompt: ...
    @property
    def codebook(self) -> str | None: ...


@dataclass(frozen=True)
class Target:
    """The speaker to convert a recording to: the flow's part of a voice.

    Attributes:
        codebook: of the model that made it, see `ModelConfig.codebook`.
    """

    prompt: FlowPrompt
    codebook: str | None = None

    @property
    def nbytes(self) -> int:
        return self.prompt.nbytes


def check_target(voice: Speaker, config: ModelConfig) -> None:
    """Whether S3Gen of a model can speak as somebody.

    Raises:
        ConfigError: names what does not fit.
    """
    if voice.codebook != config.codebook:
        raise ConfigError(
            f"the voice holds speech tokens of {voice.codebook or 'the published models'}, and this model's are "
            f"{config.codebook or 'the published ones'}; enrol its clip anew"
        )
    voice.prompt.check(config.s3gen)


def read_target(path: Path, config: ModelConfig) -> Target:
    """The speaker of a saved voice, of any model with these speech tokens.

    Raises:
        CheckpointError: the file is damaged, or made for another model.
    """
    _, prompt, codebook, *_ = read_voice(path)
    target = Target(prompt, codebook)
    try:
        check_target(target, config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return target


@dataclass(frozen=True)
class HearingNets:
    """The enrolment nets of S3Gen's file."""

    speech_tokenizer: SpeechTokenizer
    xvector: CAMPPlus


class Hearing:
    """Runs the enrolment nets of S3Gen's file, in float32.

    The nets (131 M parameters, 0.5 GB) are loaded at the first use and serve nothing else: `release` frees them.
    Safe to use from several threads.

    Args:
        config: dimensions of the checkpoint.
        weights: its `s3gen` file.
        device: where the nets run.
        keep: whether they stay loaded after `nets`.
    """

    def __init__(self, config: ModelConfig, weights: Weights, device: torch.device | str = "cpu", keep: bool = True):
        self.config = config
        self.device = torch.device(device)
        self.keep = keep
        self._weights = weights
        self._nets: HearingNets | None = None
        self._lock = threading.Lock()

    @torch.no_grad()
    @ieee_float32()
    def enrol(self, wave: np.ndarray, rate: int, norm_loudness: bool | None = None) -> Target:
        """The speaker of a reference clip.

        Args:
            wave: floating-point mono [samples], in -1..1.
            rate: its rate in Hz.
            norm_loudness: see `EnrolmentConfig.loudness_of`.

        Raises:
            AudioError: see `check_reference`.
            ConfigError: `norm_loudness` asks for what the recipe does not do.
            CheckpointError: the nets could not be loaded.
        """
        loudness = self.config.enrolment.loudness_of(norm_loudness)
        wave = check_reference(wave, rate)
        wave_24k = resample(wave, rate, RATE_24K)
        if loudness is not None:
            wave_24k = at_loudness(wave_24k, RATE_24K, loudness)
        with self.nets() as nets:
            return Target(self.prompt(nets, wave_24k), self.config.codebook)

    def read(self, path: Path) -> Target:
        """The speaker of a saved voice.

        Raises:
            CheckpointError: it is damaged, or made for another model.
        """
        return read_target(path, self.config)

    def prompt(self, nets: HearingNets, wave_24k: np.ndarray) -> FlowPrompt:
        """The flow's prompt of a clip's first 10 s, as published."""
        flow_24k = torch.from_numpy(wave_24k[: PROMPT_SECONDS * RATE_24K]).to(self.device)
        flow_16k = sinc_resample(flow_24k, RATE_24K, RATE_16K)
        mel = prompt_mel(flow_24k, self.config.s3gen.flow.num_mels)
        # The tokenizer rounds a last part of a token up; the flow's prompt has two mel frames for every token.
        tokens = nets.speech_tokenizer.tokens(flow_16k)[: mel.shape[0] // 2]
        return FlowPrompt(tokens.cpu(), mel.cpu().contiguous(), nets.xvector.embed(flow_16k)[0].cpu())

    @torch.no_grad()
    @ieee_float32()
    def speech_tokens(self, wave_16k: np.ndarray, between: Callable[[], object] | None = None) -> tuple[int, ...]:
        """The speech tokens of a recording of any length, 25 a second, from one window's memory at a time.

        Args:
            wave_16k: float32 [samples] at 16 kHz, longer than 200 samples.
            between: called after each window; what it raises ends the work.

        Raises:
            CheckpointError: the nets could not be loaded.
        """
        tokens: list[int] = []
        with self.nets() as nets:
            wave = torch.from_numpy(wave_16k).to(self.device)
            for part in nets.speech_tokenizer.windows(wave, len(wave) // HOP_16K):
                tokens += part.tolist()
                if between is not None:
                    between()
        return tuple(tokens)

    @property
    def is_loaded(self) -> bool:
        """Whether the nets are in memory."""
        return self._nets is not None

    @contextmanager
    def nets(self) -> Iterator[HearingNets]:
        """The nets, loaded where they are not; freed afterwards unless they are kept."""
        try:
            yield self.load_nets()
        finally:
            if not self.keep:
                self.release()

    def load_nets(self) -> HearingNets:
        """The nets, which stay.

        Raises:
            CheckpointError: they could not be loaded.
        """
        with self._lock:
            if self._nets is None:
                with torch.device("meta"):
                    nets = HearingNets(
                        SpeechTokenizer(self.config.s3gen.tokenizer), CAMPPlus(self.config.s3gen.xvector)
                    )
                load_module(nets.speech_tokenizer, self._weights, "tokenizer.", self.device)
                load_module(nets.xvector, self._weights, "speaker_encoder.", self.device)
                self._nets = nets
            return self._nets

    def release(self) -> None:
        """Free the nets; the next use loads them again."""
        with self._lock:
            self._nets = None
        if self.device.type == "cuda":
            with recording:  # no memory may be given back while another thread records a graph
                torch.cuda.empty_cache()
