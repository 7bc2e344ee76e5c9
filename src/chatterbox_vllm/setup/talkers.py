"""The talker of a model: vLLM's where tokens are drawn one after another, our own where blocks are filled in."""

from __future__ import annotations

import torch

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.engine.talker import TalkerStage
from chatterbox_vllm.t3.blocks.stage import BlockStage
from chatterbox_vllm.t3.options import T3Options
from chatterbox_vllm.t3.vllm.stage import T3Stage


def open_talker(config: T3Config, weights: Weights, options: T3Options, device: torch.device) -> TalkerStage:
    """Start it.

    Raises:
        ConfigError: an option that the model's kind of decoding does not have.
        DeviceError: it cannot start.
    """
    stage = T3Stage if config.blocks is None else BlockStage
    return stage(config, weights, options, device)
