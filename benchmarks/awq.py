"""What AWQ's calibration gains over round-to-nearest, on texts that it was not calibrated on.

    python benchmarks/awq.py english -o english-awq      (a directory, a hub id or "small" will do as well)

Writes the calibrated model, and prints for it and for plain rounding to the same layout: the error of the hidden states
after the last layer, and the divergence of the next-token distributions of both guidance streams, from the model as it
is, teacher-forced on its own speech. All in float32, so that nothing but the weights differs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.families.registry import FAMILIES, config_of
from chatterbox_vllm.quantization.config import QuantizationConfig
from chatterbox_vllm.setup.device import resolve_device
from chatterbox_vllm.setup.models import resolve_model
from chatterbox_vllm.setup.provenance import provenance
from chatterbox_vllm.setup.quantize import calibration_utterances, calibration_voices, quantize_model
from chatterbox_vllm.t3.backbone import Layer
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.t3.llama import LINEARS
from chatterbox_vllm.t3.plain import PlainT3
from chatterbox_vllm.t3.quantization.awq_layout import rounded
from chatterbox_vllm.t3.quantization.file import QuantizedT3

HELD_OUT = (
    "The quick brown fox jumps over the lazy dog.",
    "Tomorrow will be cloudy at first, with rain moving in from the west after lunch.",
    "Are you quite sure that this is the right platform?",
)


class RoundedT3(PlainT3):
    """The model with every linear weight rounded to AWQ's grid, neither scaled nor clipped."""

    def layer(self, index: int) -> Layer:
        layer = super().layer(index)
        return layer | {name: rounded(layer[name]) for name in LINEARS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    directory, device = resolve_model(options.model), resolve_device(options.device)
    start = time.monotonic()
    config = quantize_model(directory, options.output, QuantizationConfig("awq"), device=options.device)
    seconds = time.monotonic() - start

    file = FAMILIES[config.family].t3
    plain = config_of(directory)
    weights = Weights(directory / file)
    voices = calibration_voices(directory, plain, (), device)
    utterances = calibration_utterances(directory, plain, weights, HELD_OUT, voices, device)
    builder = PromptBuilder.from_weights(plain.t3, weights)
    model = PlainT3(plain.t3, weights, device)
    rows = [model.embed(builder, utterance.prompt, utterance.tokens) for utterance in utterances]
    spans = [len(utterance.tokens) + 1 for utterance in utterances]
    exact = model.teacher_forced(rows)
    part = config.quantized.t3
    assert part is not None
    candidates = {
        "calibrated": QuantizedT3(config.t3, Weights(options.output / file), part, device),
        "round to nearest": RoundedT3(plain.t3, weights, device),
    }
    report = {**provenance(device, options.model, directory), "calibration s": round(seconds, 1)}
    for name, candidate in candidates.items():
        report[name] = compare(exact, candidate.teacher_forced(rows), spans)
    print(json.dumps(report, indent=1))


def compare(exact: list[torch.Tensor], got: list[torch.Tensor], spans: list[int]) -> dict[str, float]:
    """Over the rows that speech is drawn from, both streams."""
    a = torch.cat([x[:, -n:].flatten(0, 1) for x, n in zip(exact, spans, strict=True)])
    b = torch.cat([x[:, -n:].flatten(0, 1) for x, n in zip(got, spans, strict=True)])
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    return {
        "rows": len(a),
        "logits_relative_error": float((a - b).norm() / a.norm()),
        "kl_mean": float((log_a.exp() * (log_a - log_b)).sum(-1).mean()),
        "top1_agreement": float((a.argmax(-1) == b.argmax(-1)).float().mean()),
    }


if __name__ == "__main__":
    main()
