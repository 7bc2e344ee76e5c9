"""The published English model."""

from __future__ import annotations

from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.parameters import SpeechValues
from chatterbox_vllm.t3.conditioning import PromptBuilder
from chatterbox_vllm.text.normalize import normalize_punctuation
from chatterbox_vllm.text.tokenizer import BpeTokenizer

TOKENIZER = "tokenizer.json"

ENGLISH = Family(
    name="english",
    languages={"en": "English"},
    repository="ResembleAI/chatterbox",
    revision="5bb1f6ee58e50c3b8d408bc82a6d3740c2db6e18",
    t3="t3_cfg.safetensors",
    s3gen="s3gen.safetensors",
    voice_encoder="ve.safetensors",
    tokenizer=(TOKENIZER,),
    builtin_voice="conds.pt",
    config=ModelConfig(),
    # Of the published `generate`.
    defaults=SpeechValues(
        exaggeration=0.5,
        cfg_weight=0.5,
        temperature=0.8,
        min_p=0.05,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.2,
        max_tokens=1000,
        diffusion_steps=10,
    ),
    absent=frozenset({"top_k"}),
    read_tokenizer=lambda directory: BpeTokenizer(directory / TOKENIZER),
    normalize=normalize_punctuation,
    read_prompt_builder=PromptBuilder.from_weights,
)
