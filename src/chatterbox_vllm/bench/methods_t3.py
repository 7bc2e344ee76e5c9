"""What each method does to T3, inside the engine that serves it.

Teacher-forced on what the unquantized T3 says, so that all methods meet the same tokens. Two errors tell two causes
apart: the distance from the published weights in float32 is what the method costs, and the distance from its own
weights, dequantized and multiplied in plain float32, is what its kernels do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from chatterbox_vllm.bench.measure import Row, Workload, bytes_of, median_speed, relative_error
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.prompts import PromptMaker
from chatterbox_vllm.engine.request import TOKENS_PER_SECOND, SpeechParameters
from chatterbox_vllm.errors import ConfigError
from chatterbox_vllm.evaluation.metrics import divergence
from chatterbox_vllm.families.layout import check_t3
from chatterbox_vllm.families.registry import config_of, family_of
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.estimate import QuantizationMemoryEstimator
from chatterbox_vllm.setup.quantize import STORED_T3_METHODS, calibration_voices, quantize_model
from chatterbox_vllm.setup.tiers import Plan
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.file import QuantizedT3
from chatterbox_vllm.t3.quantization.methods import automatic_dtype
from chatterbox_vllm.t3.vllm.forcing import ForcedTokens
from chatterbox_vllm.t3.vllm.stage import T3Options, T3Output, T3Stage

# None of them is what AWQ is calibrated on.
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it does so once more, to be quite sure of it.",
    "Tomorrow will be cloudy at first, with rain moving in from the west after lunch.",
    "Are you quite sure that this is the right platform?",
)


class T3Methods:
    """One model's T3 under one method after the other; the unquantized one first.

    Args:
        work: where quantized files are written.
    """

    def __init__(self, directory: Path, device: torch.device, workload: Workload, work: Path):
        self.directory, self.device, self.workload, self.work = directory, device, workload, work
        self.config = config_of(directory)
        family = family_of(self.config.family)
        self._file = family.t3
        self._tokens = max(1, round(workload.seconds * TOKENS_PER_SECOND))
        weights = Weights(directory / self._file)
        self._builder = family.read_prompt_builder(self.config.t3, weights)
        (voice,) = calibration_voices(directory, self.config, (), device)
        tokenizer = family.read_tokenizer(directory)
        maker = PromptMaker(
            self.config, tokenizer, self._builder, backbone_of(self.config.t3).most_positions(self.config.t3)
        )
        parameters = SpeechParameters(max_tokens=self._tokens)
        self._prompts = [maker.prompt_of(text, voice, parameters)[0] for text in TEXTS]
        self._sampling = maker.values(parameters).sampling
        self._said: list[tuple[int, ...]] = []
        self._exact: list[torch.Tensor] = []

    def row(self, method: str | None) -> Row:
        """Bytes, errors and tokens a second.

        Raises:
            ConfigError, CheckpointError, DeviceError: the method cannot be had here.
        """
        directory = self._quantized_directory(method)
        weights = Weights(directory / self._file)
        check_t3(config_of(directory), weights)
        options = T3Options(
            dtype=self.workload.dtype or automatic_dtype(method, self.device),
            max_model_len=max(map(len, self._prompts)) + self._tokens,
            max_batch_size=max(*self.workload.batches, len(TEXTS)),
            cuda_graphs=self.device.type == "cuda",
            quantization=method,
            graph_sizes=tuple(sorted({*self.workload.batches, len(TEXTS)})),
            teacher_forcing=True,
        )
        talker = T3Stage(self.config.t3, weights, options, self.device)
        try:
            if method is None:
                self._said = self._speak(talker)
                self._exact = self._plain_logits(PlainT3(self.config.t3, weights, self.device))
            logits = torch.cat(self._force(talker))
            info = talker.quantization
            speeds = {f"tokens/s, {batch}": self._speed(talker, batch) for batch in self.workload.batches}
        finally:
            talker.close()
        estimator = QuantizationMemoryEstimator(self.directory, half=options.dtype != torch.float32)
        theory = estimator.estimate(Plan(QuantizationConfig(t3=method))).device["T3 linear layers"]
        exact = torch.cat(self._exact)
        return {
            "dtype": str(options.dtype).removeprefix("torch."),
            **bytes_of(info, theory if method else None),
            "error": relative_error(logits, exact),
            "KL": float(divergence(exact.numpy(), logits.numpy()).mean()),
            "of the kernels": self._kernel_error(directory, weights, logits),
            **speeds,
        }

    def _quantized_directory(self, method: str | None) -> Path:
        """Where the files are that the method is loaded from."""
        if method not in STORED_T3_METHODS:
            return self.directory
        if method == "awq" and self.workload.awq is not None:
            return self.workload.awq
        made = self.work / method
        quantize_model(self.directory, made, QuantizationConfig(method), device=str(self.device))
        return made

    def _kernel_error(self, directory: Path, weights: Weights, logits: torch.Tensor) -> float | None:
        part = config_of(directory).quantized.t3
        if part is None:  # unquantized, or in a form that vLLM makes while loading
            return None
        own = self._plain_logits(QuantizedT3(self.config.t3, weights, part, self.device))
        return relative_error(logits, torch.cat(own))

    def _speak(self, talker: T3Stage) -> list[tuple[int, ...]]:
        """What the model says to each text, end of speech left out.

        Raises:
            ConfigError: nothing to one of them.
        """
        for i, prompt in enumerate(self._prompts):
            talker.add(str(i), prompt, self._sampling, seed=i)
        spoken = {int(output.request_id): output.token_ids for output in _run(talker)}
        stop = self.config.t3.stop_speech_token
        said = [tuple(token for token in spoken[i] if token != stop) for i in range(len(TEXTS))]
        if not all(said):
            raise ConfigError(f"{self.directory}: the model says nothing to one of the texts, so nothing can be forced")
        return said

    def _force(self, talker: T3Stage) -> list[torch.Tensor]:
        """Guided logits [n, V] of each text's tokens, from the engine."""
        forced = [ForcedTokens(tokens, self.config.t3.speech_vocab_size) for tokens in self._said]
        for i, (prompt, tokens) in enumerate(zip(self._prompts, forced, strict=True)):
            sampling = replace(self._sampling, max_tokens=len(tokens.tokens))
            talker.add(str(i), prompt, sampling, seed=i, forced=tokens)
        _run(talker)
        return [tokens.logits for tokens in forced]

    def _plain_logits(self, model: PlainT3) -> list[torch.Tensor]:
        """The same from a model in plain float32."""
        rows = [
            model.embed(self._builder, prompt, tokens) for prompt, tokens in zip(self._prompts, self._said, strict=True)
        ]
        found = []
        for streams, tokens in zip(model.teacher_forced(rows), self._said, strict=True):
            # The prompt's last row draws the first token; what the last token leads to is not drawn.
            conditional, *unconditional = streams[:, -len(tokens) - 1 : -1].cpu()
            found.append(conditional)
            for other in unconditional:
                found[-1] = conditional + self._sampling.cfg_weight * (conditional - other)
        return found

    def _speed(self, talker: T3Stage, batch: int) -> float:
        def speak() -> float:
            for i in range(batch):
                talker.add(str(i), self._prompts[0], self._sampling, seed=i)
            return sum(len(output.token_ids) for output in _run(talker))

        return median_speed(speak, self.device, self.workload.repeats)


def _run(talker: T3Stage) -> list[T3Output]:
    outputs = []
    while talker.unfinished:
        outputs += talker.step()
    return outputs
