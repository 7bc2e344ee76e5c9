"""The backbones by the names that a configuration gives them."""

from __future__ import annotations

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.t3.backbone import Backbone
from chatterbox_vllm.t3.gpt2 import Gpt2
from chatterbox_vllm.t3.llama import Llama

BACKBONES: dict[str, Backbone] = {"llama": Llama(), "gpt2": Gpt2()}


def backbone_of(config: T3Config) -> Backbone:
    """The backbone that a configuration names."""
    return BACKBONES[config.backbone]
