"""S3Gen's networks: what the published file holds, in which dtypes, and what of it may be quantized."""

from __future__ import annotations

import torch
from torch import nn

from chatterbox_vllm.checkpoint.config import S3GenConfig
from chatterbox_vllm.checkpoint.files import Weights, load_module
from chatterbox_vllm.quantization.modules import QuantizedLinear, quantize_layers
from chatterbox_vllm.quantization.storage import Scheme
from chatterbox_vllm.s3gen.execution import Execution
from chatterbox_vllm.s3gen.flow.encoder import Block, FlowEncoder
from chatterbox_vllm.s3gen.flow.estimator import Estimator, TransformerBlock
from chatterbox_vllm.s3gen.vocoder.hift import HiFT


class S3GenNetworks(nn.Module):
    """Flow (encoder, estimator) and vocoder of one checkpoint, on one device."""

    def __init__(self, config: S3GenConfig):
        super().__init__()
        self.config = config
        self.encoder = FlowEncoder(config.flow)
        self.speaker = nn.Linear(config.xvector.embedding_size, config.flow.num_mels)
        self.estimator = Estimator(config.flow)
        self.vocoder = HiFT(config.hift)
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are and the results will be."""
        return self.speaker.weight.device

    def published_parts(self) -> dict[str, nn.Module]:
        """Submodules by the prefix of their keys in the published file."""
        return {
            "flow.": self.encoder,
            "flow.spk_embed_affine_layer.": self.speaker,
            "flow.decoder.estimator.": self.estimator,
            "mel2wav.": self.vocoder,
        }

    def quantizable_layers(self) -> list[str]:
        """Names of the layers whose weights may be quantized: attention and feed-forward of encoder and estimator.

        Embeddings, input and output layers, the time path, convolutions and the vocoder are not among them.
        """
        return [
            f"{name}.{inner}"
            for name, block in self.named_modules()
            if isinstance(block, (Block, TransformerBlock))
            for inner, layer in block.named_modules()
            if isinstance(layer, (nn.Linear, QuantizedLinear))
        ]

    def cast(self, execution: Execution) -> None:
        """Hold the weights in the dtypes of `execution`.

        The time path, the speaker projection, pitch and source stay float32.
        """
        self.encoder.to(execution.dtype)
        self.estimator.cast(execution.dtype)
        self.vocoder.cast(execution.vocoder_dtype)

    def read(
        self, weights: Weights, device: torch.device | str, execution: Execution, quantization: Scheme | None
    ) -> None:
        """Fill networks that were made on the meta device from `s3gen.safetensors`.

        Args:
            quantization: of `quantizable_layers`, each as soon as it is read; None leaves them in their dtype.

        Raises:
            CheckpointError: a tensor is missing or has another shape than `config` says.
        """
        if quantization is not None:
            quantize_layers(self, self.quantizable_layers(), quantization)
        self.cast(execution)
        for prefix, module in self.published_parts().items():
            load_module(module, weights, prefix, device)
