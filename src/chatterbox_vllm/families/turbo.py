"""The published Turbo and Nano, which differ in T3's size alone: GPT-2 without guidance, and a flow of two steps."""

from __future__ import annotations

from dataclasses import replace

from chatterbox_vllm.checkpoint.config import EnrolmentConfig, FlowConfig, ModelConfig, S3GenConfig, T3Config
from chatterbox_vllm.families.ending import SpeechEnding
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.parameters import SpeechValues
from chatterbox_vllm.t3.gpt2 import Gpt2PromptBuilder
from chatterbox_vllm.text.gpt2_tokenizer import FILES, Gpt2Tokenizer
from chatterbox_vllm.text.normalize import normalize_punctuation_turbo

_SILENCE = 4299  # a speech token

_TURBO_CONFIG = ModelConfig(
    family="turbo",
    t3=T3Config(
        backbone="gpt2",
        num_layers=24,
        text_vocab_size=50_276,
        speech_vocab_size=6563,
        # What the published tokenizer cuts texts to; pieces of a text are far shorter.
        text_positions=1024,
        speech_prompt_tokens=375,
        guidance_streams=1,
        penalty_last=True,
    ),
    s3gen=S3GenConfig(flow=FlowConfig(meanflow=True)),
    enrolment=EnrolmentConfig(recipe="turbo", speech_prompt_seconds=15, least_seconds=5.0, loudness=-27.0),
)

TURBO = Family(
    name="turbo",
    languages=ENGLISH.languages,
    repository="ResembleAI/chatterbox-turbo",
    revision="749d1c1a46eb10492095d68fbcf55691ccf137cd",
    t3="t3_turbo_v1.safetensors",
    s3gen="s3gen_meanflow.safetensors",
    voice_encoder="ve.safetensors",
    tokenizer=FILES,
    builtin_voice="conds.pt",
    config=_TURBO_CONFIG,
    # Of the published `generate`.
    defaults=SpeechValues(
        exaggeration=0.0,
        cfg_weight=0.0,
        temperature=0.8,
        min_p=0.0,
        top_p=0.95,
        top_k=1000,
        repetition_penalty=1.2,
        max_tokens=1000,
        diffusion_steps=2,
    ),
    absent=frozenset({"exaggeration", "cfg_weight", "min_p"}),
    read_tokenizer=Gpt2Tokenizer,
    normalize=normalize_punctuation_turbo,
    read_prompt_builder=Gpt2PromptBuilder.from_weights,
    ending=SpeechEnding(appended=(_SILENCE,) * 3),
)

NANO = replace(
    TURBO,
    name="nano",
    repository="ResembleAI/chatterbox-nano",
    revision="71ccd1d0081b430592cea481f4307e764e07bc64",
    t3="t3_nano_v1.safetensors",
    config=replace(
        _TURBO_CONFIG,
        family="nano",
        t3=replace(_TURBO_CONFIG.t3, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072),
    ),
)
