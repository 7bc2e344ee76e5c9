"""The `vllm.general_plugins` entry point: makes T3 and its quantization known to vLLM in every process."""

from __future__ import annotations

from chatterbox_vllm.t3.vllm.config import ARCHITECTURE


def register() -> None:
    """Register T3's architecture and the bitsandbytes quantization; harmless when called again."""
    from vllm import ModelRegistry

    # Registers its config where it is imported, which has to be before engine arguments are made.
    import chatterbox_vllm.t3.vllm.bitsandbytes  # noqa: F401

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"chatterbox_vllm.t3.vllm.model:{ARCHITECTURE}")
