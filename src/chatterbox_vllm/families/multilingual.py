"""The published multilingual models: one T3 for 23 languages, newer weights of it, and finetunes for one language each.

They differ from the English model in the text's side, in the files' form, and in the last token, whose audio is noise
and is cut off.
"""

from __future__ import annotations

from dataclasses import replace

from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.families.ending import SpeechEnding
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.text.languages.chinese import TABLE
from chatterbox_vllm.text.normalize import normalize_any_punctuation
from chatterbox_vllm.text.tokenizer import MultilingualTokenizer

TOKENIZER = "grapheme_mtl_merged_expanded_v1.json"
LANGUAGES = {
    "ar": "Arabic",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ms": "Malay",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "tr": "Turkish",
    "zh": "Chinese",
}

MULTILINGUAL = replace(
    ENGLISH,
    name="multilingual",
    languages=LANGUAGES,
    t3="t3_mtl23ls_v2.safetensors",
    s3gen="s3gen.pt",
    voice_encoder="ve.pt",
    tokenizer=(TOKENIZER, TABLE),
    config=ModelConfig(family="multilingual", t3=T3Config(text_vocab_size=2454)),
    read_tokenizer=lambda directory: MultilingualTokenizer(directory / TOKENIZER),
    normalize=normalize_any_punctuation,
    ending=SpeechEnding(unheard=1),
)
