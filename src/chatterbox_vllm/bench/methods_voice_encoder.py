"""What each method does to the voice encoder: the error is of the embedding of the same pieces of mel."""

from __future__ import annotations

from pathlib import Path

import torch

from chatterbox_vllm.bench.measure import Row, Workload, bytes_of, median_speed, relative_error
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.live import component_info
from chatterbox_vllm.quantization.modules import quantize_layers
from chatterbox_vllm.quantization.storage import scheme_of
from chatterbox_vllm.voices.nets.voice_encoder import VoiceEncoder

_PIECES, _FRAMES = 8, 160
_PIECE_SECONDS = 1.6


class VoiceEncoderMethods:
    """One model's voice encoder under one method after the other, in float32."""

    def __init__(self, directory: Path, device: torch.device, workload: Workload):
        self.device, self.workload = device, workload
        config = config_of(directory)
        self.config = config.voice_encoder
        self.weights = Weights(directory / family_of(config.family).voice_encoder)
        mels = torch.rand(_PIECES, _FRAMES, self.config.num_mels, generator=torch.Generator().manual_seed(0))
        self._pieces = mels.to(device)
        self._exact = self._embed(self._load(None))

    def row(self, method: str | None) -> Row:
        """Bytes, error, and seconds of audio taken in a second.

        Raises:
            ConfigError, CheckpointError: the method cannot be had here.
        """
        encoder = self._load(method)
        theory = None
        if method is not None:
            layers = [encoder.get_submodule(name) for name in encoder.quantizable_layers()]
            matrices = [value for layer in layers for value in getattr(layer, "matrices", {}).values()]
            theory = sum(scheme_of(method).stored_bytes(matrix.shape) for matrix in matrices)
        error = relative_error(self._embed(encoder), self._exact)

        def embed() -> float:
            self._embed(encoder)
            return _PIECES * _PIECE_SECONDS

        return {
            "dtype": "float32",
            **bytes_of(component_info(encoder), theory),
            "error": error,
            "x real time": median_speed(embed, self.device, self.workload.repeats),
        }

    def _load(self, method: str | None) -> VoiceEncoder:
        with torch.device("meta"):
            encoder = VoiceEncoder(self.config)
        if method is not None:
            quantize_layers(encoder, encoder.quantizable_layers(), scheme_of(method))
        load_module(encoder, self.weights, "", self.device)
        return encoder

    @torch.inference_mode()
    def _embed(self, encoder: VoiceEncoder) -> torch.Tensor:
        return encoder(self._pieces)
