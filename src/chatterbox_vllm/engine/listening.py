"""From a recording to what S3Gen says in another voice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from chatterbox_vllm.audio.features import RATE_16K
from chatterbox_vllm.audio.resample import resample
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.engine.conversion import LONGEST_WHOLE, ConversionRequest
from chatterbox_vllm.engine.prompts import Piece, Script
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND
from chatterbox_vllm.engine.source import Source, quiet_ends
from chatterbox_vllm.errors import AudioError, ConfigError
from chatterbox_vllm.families.registry import family_of
from chatterbox_vllm.text.split import Segment
from chatterbox_vllm.voices.hearing import Hearing, check_target
from chatterbox_vllm.voices.reference import in_range

LEAST_SECONDS = 0.1
_SAMPLES_PER_TOKEN = RATE_16K // TOKENS_PER_SECOND


class SourceReader:
    """Decodes recordings and finds their speech tokens. For several threads.

    Args:
        config: of the model.
        hearing: its enrolment nets.
    """

    def __init__(self, config: ModelConfig, hearing: Hearing):
        self.config, self.hearing = config, hearing
        self.family = family_of(config.family)
        self._defaults = self.family.defaults_of(config)

    def script(self, request: ConversionRequest, between: Callable[[], object] | None = None) -> Script:
        """Everything that S3Gen needs to know of a request; of its samples nothing is kept.

        Args:
            between: called now and then; what it raises ends the work.

        Raises:
            ConfigError: the voice is not for this model, a parameter is none of it, or noise does not fit.
            AudioError: the recording cannot be read, or is too short or too long.
        """
        check_target(request.voice, self.config)
        values = request.parameters.resolved(self._defaults, self.family.absent, f"the {self.family.name} model")
        wave = self._wave(request)
        tokens = self.hearing.speech_tokens(wave, between)
        if request.noise is not None and len(tokens) > LONGEST_WHOLE:
            raise ConfigError(
                f"noise was given for a recording of {len(tokens) / TOKENS_PER_SECOND:.0f} s, which is rendered in "
                f"chunks; give it for at most {LONGEST_WHOLE / TOKENS_PER_SECOND:.0f} s"
            )
        padded = np.pad(wave, (0, max(0, _SAMPLES_PER_TOKEN * len(tokens) - len(wave))))
        levels = np.square(padded[: _SAMPLES_PER_TOKEN * len(tokens)]).reshape(len(tokens), -1).mean(1)
        piece = Piece(Segment("", 0.0), [], values)
        return Script([piece], torch.empty(0), source=Source(tokens, quiet_ends(levels)))

    def _wave(self, request: ConversionRequest) -> np.ndarray:
        """The recording, float32 [samples] at 16 kHz: from its own rate in one step, as published."""
        # Imported here: it brings all of FFmpeg.
        from chatterbox_vllm.audio.decode import decode_audio

        wave, rate = decode_audio(request.audio, request.longest, too_long="convert it in parts")
        if len(wave) < LEAST_SECONDS * rate:
            raise AudioError(
                f"{request.name}: lasts {len(wave) / rate:.2f} s, at least {LEAST_SECONDS} s is needed to convert it"
            )
        return resample(in_range(wave, request.name), rate, RATE_16K)
