"""The `vllm.general_plugins` entry point: makes T3's architectures known to vLLM.

vLLM runs it in every process of the machine that starts an engine, whatever the model. So it names the architectures
and imports nothing of ours beside; the rest is imported when a T3 engine is built.
"""

from __future__ import annotations

# By backbone: the architecture's name, which is its class's, and the module of the class.
ARCHITECTURES = {
    "llama": ("T3ForSpeech", "chatterbox_vllm.t3.vllm.model"),
    "gpt2": ("T3Gpt2ForSpeech", "chatterbox_vllm.t3.vllm.gpt2_model"),
}


def register() -> None:
    """Register T3's architectures by name; harmless when called again."""
    from vllm import ModelRegistry

    for name, module in ARCHITECTURES.values():
        if name not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(name, f"{module}:{name}")
