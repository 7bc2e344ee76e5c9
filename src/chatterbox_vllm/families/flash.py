"""The published Flash: the English model's transformer, which fills in blocks of masked tokens, and a mean flow."""

from __future__ import annotations

from dataclasses import replace

from chatterbox_vllm.checkpoint.config import BlockDecoding, FlowConfig, ModelConfig, S3GenConfig, T3Config
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.t3.blocks.prompt import BlockPromptBuilder
from chatterbox_vllm.text.normalize import normalize_spelled_out

FLASH: Family = replace(
    ENGLISH,
    name="flash",
    repository="ResembleAI/chatterbox-flash",
    revision=None,
    t3="t3_flash.safetensors",
    # Its repository holds no voice; one that lies beside its files is taken.
    config=ModelConfig(
        family="flash",
        t3=T3Config(blocks=BlockDecoding()),
        s3gen=S3GenConfig(flow=FlowConfig(meanflow=True)),
    ),
    # Of the published `generate`; what `BlockDecoding` says of a text's length limits its speech.
    defaults=replace(
        ENGLISH.defaults,
        cfg_weight=1.0,
        temperature=0.6,
        min_p=0.0,
        repetition_penalty=1.0,
        max_tokens=4096,
        diffusion_steps=2,
    ),
    absent=frozenset({"min_p", "top_p", "top_k", "repetition_penalty"}),
    normalize=normalize_spelled_out,
    read_prompt_builder=BlockPromptBuilder.from_weights,
)
