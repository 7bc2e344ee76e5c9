"""The published English model."""

from __future__ import annotations

from chatterbox_vllm.families.family import Family

ENGLISH = Family(
    name="english",
    repository="ResembleAI/chatterbox",
    revision="5bb1f6ee58e50c3b8d408bc82a6d3740c2db6e18",
    t3="t3_cfg.safetensors",
    s3gen="s3gen.safetensors",
    voice_encoder="ve.safetensors",
    tokenizer="tokenizer.json",
    builtin_voice="conds.pt",
)
