"""Makes goldens/alignment.json: what the published analyzer decides at each step of made-up attention.

    PYTHONPATH=. python -m tests.parity.oracle.make_alignment

Needs the published package chatterbox-tts 0.1.7, which this project does not. A row is what becomes of the end ("none",
"held", "forced"), which of its three reasons the analyzer had for forcing it (long tail, repetition of text, repetition
of a token), then text position, whether speech has started, and how many attention rows there were when the text was
said.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from chatterbox.models.t3.inference import alignment_stream_analyzer as published

from .alignment import MADE_UP, Scenario

END, TEXT_START = 6562, 34


class _Attention(torch.nn.Module):
    def forward(self, weights: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, weights


def trace(scenario: Scenario) -> list[list[Any]]:
    said: list[str] = []
    published.logger = SimpleNamespace(warning=said.append)
    layers = [SimpleNamespace(self_attn=_Attention()) for _ in range(30)]
    text = (TEXT_START, TEXT_START + scenario.size)
    analyzer = published.AlignmentStreamAnalyzer(SimpleNamespace(layers=layers), None, text, eos_idx=END)
    rows = torch.from_numpy(scenario.attention())
    steps = []
    for step, token in enumerate(scenario.tokens()):
        newest = rows[:2] if step == 0 else rows[step + 1 : step + 2]
        places = text[1] + 2 + step
        weights = torch.zeros(1, 16, places if step == 0 else 1, places)
        weights[0, :, -len(newest) :, text[0] : text[1]] = newest
        for layer, _ in published.LLAMA_ALIGNED_HEADS:
            layers[layer].self_attn(weights)
        said.clear()
        logits = analyzer.step(torch.zeros(1, END + 1), token)
        end = {0.0: "none", -(2.0**15): "held", 2.0**15: "forced"}[float(logits[0, END])]
        reasons = [bool(re.search(f"{name}=(tensor\\()?True", " ".join(said))) for name in REASONS]
        steps.append([end, *reasons, int(analyzer.text_position), bool(analyzer.started), analyzer.completed_at or 0])
    return steps


REASONS = ("long_tail", "alignment_repetition", "token_repetition")

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    traces = {scenario.name: trace(scenario) for scenario in MADE_UP}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(steps)}" for name, steps in traces.items())
    (Path(__file__).parents[1] / "goldens" / "alignment.json").write_text(f"{{\n{lines}\n}}\n")
