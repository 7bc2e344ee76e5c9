"""T3's transformer in plain torch, one layer in memory at a time: to calibrate quantization, and to check results by.

It knows nothing of vLLM and computes whole sequences in float32. What a backbone does stands in `llama.py` and
`gpt2.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.t3.backbone import Layer, Observer, PromptRows
from chatterbox_vllm.t3.backbones import backbone_of


class PlainT3:
    """Reads layers from a published file when they are needed.

    Args:
        weights: an unquantized T3 file.
        device: where it computes, in float32.
    """

    def __init__(self, config: T3Config, weights: Weights, device: torch.device | str = "cpu"):
        self.config, self.weights, self.device = config, weights, torch.device(device)
        self.backbone = backbone_of(config)

    def layer(self, index: int) -> Layer:
        """Layer `index`: linear weights [out, in], norms and biases, float32."""
        backbone = self.backbone
        names = (*backbone.linears, *backbone.vectors)
        return {name: backbone.read(self.weights, index, name).to(self.device, torch.float32) for name in names}

    def layers(self) -> Iterator[Layer]:
        """All layers, first to last."""
        return (self.layer(i) for i in range(self.config.num_layers))

    @torch.inference_mode()
    def embed(self, builder: PromptRows, prompt: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """The rows of one teacher-forced sequence.

        Args:
            prompt: [P, S * H] from the builder's `prompt`.
            tokens: the speech tokens after it.

        Returns:
            [S, P + n, H], conditional stream first.
        """
        streams = torch.stack(prompt.chunk(self.config.guidance_streams, dim=-1))
        speech = builder.speech(torch.tensor(tokens, dtype=torch.int64))
        rows = torch.cat([streams, speech.expand(len(streams), -1, -1)], dim=1).to(self.device)
        return self.backbone.enter(self.weights, rows)

    @torch.inference_mode()
    def run_layer(self, layer: Layer, x: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]; `observe` sees the inputs of all linear layers."""
        return self.backbone.run_layer(self.config, layer, x, observe or (lambda names, value: None))

    def teacher_forced(self, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Logits [S, T, V] at every row of sequences [S, T, H] from `embed`; float32, one layer in memory at a time."""
        hidden = list(rows)
        for layer in self.layers():
            hidden = [self.run_layer(layer, x) for x in hidden]
        return [self.logits(x) for x in hidden]

    @torch.inference_mode()
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last layer [..., H] -> [..., V]."""
        return self.backbone.logits(self.config, self.weights, x)
