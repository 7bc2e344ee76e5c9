"""What each method does to S3Gen: the error is of the mel, from the same tokens, voice and noise."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from chatterbox_vllm.bench.measure import Row, Workload, bytes_of, median_speed, relative_error
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.live import component_info
from chatterbox_vllm.quantization.storage import scheme_of
from chatterbox_vllm.s3gen.model import S3Gen, S3GenRequest
from chatterbox_vllm.setup.quantize import calibration_voices

_STEPS = 10


class S3GenMethods:
    """One model's S3Gen under one method after the other, in the precision that it serves in on the device."""

    def __init__(self, directory: Path, device: torch.device, workload: Workload):
        self.device, self.workload = device, workload
        config = config_of(directory)
        self.config = config.s3gen
        self.weights = Weights(directory / family_of(config.family).s3gen)
        (self.voice,) = calibration_voices(directory, config, (), device)
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        count = max(1, round(workload.seconds * TOKENS_PER_SECOND))
        draws = torch.Generator().manual_seed(0)
        self._tokens = torch.randint(0, self.config.flow.vocab_size, (count,), generator=draws)
        self._exact = self._mel(self._load(torch.float32, None))

    def row(self, method: str | None) -> Row:
        """Bytes, error and seconds of audio a second, one utterance at a time.

        Raises:
            ConfigError, CheckpointError: the method cannot be had here.
        """
        model = self._load(self.dtype, method)
        theory = None
        if method is not None:
            layers = [cast(nn.Linear, model.get_submodule(name)) for name in model.quantizable_layers()]
            shapes = [(layer.out_features, layer.in_features) for layer in layers]
            theory = sum(map(scheme_of(method).stored_bytes, shapes))
        error = relative_error(self._mel(model), self._exact)
        request = self._request(model)

        def voice_it() -> float:
            model.synthesize([request], _STEPS)
            return len(self._tokens) / TOKENS_PER_SECOND

        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            **bytes_of(component_info(model), theory),
            "error": error,
            "x real time": median_speed(voice_it, self.device, self.workload.repeats),
        }

    def _load(self, dtype: torch.dtype, method: str | None) -> S3Gen:
        scheme = None if method is None else scheme_of(method)
        return S3Gen.from_weights(self.config, self.weights, self.device, dtype, dtype, quantization=scheme)

    def _request(self, model: S3Gen) -> S3GenRequest:
        noise = model.draw_noise(1, len(self._tokens), self.voice.prompt)
        return S3GenRequest(self._tokens, self.voice.prompt, noise)

    def _mel(self, model: S3Gen) -> torch.Tensor:
        return model.mel([self._request(model)], _STEPS)[0]
