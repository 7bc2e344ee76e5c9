"""The `vllm.general_plugins` entry point: makes T3 known to vLLM in every process that it starts."""

from __future__ import annotations

from chatterbox_vllm.models.t3.vllm_config import ARCHITECTURE


def register() -> None:
    """Register T3's architecture; harmless when called again."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"chatterbox_vllm.models.t3.vllm_model:{ARCHITECTURE}")
