"""The `vllm.general_plugins` entry point: makes T3's architecture known to vLLM.

vLLM runs it in every process of the machine that starts an engine, whatever the model. So it names the architecture and
imports nothing of ours beside; the rest is imported when a T3 engine is built.
"""

from __future__ import annotations

ARCHITECTURE = "T3ForSpeech"


def register() -> None:
    """Register T3's architecture by name; harmless when called again."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"chatterbox_vllm.t3.vllm.model:{ARCHITECTURE}")
