"""The published multilingual models: one T3 for 23 languages, newer weights of it, and finetunes for one language each.

They differ from the English model in the text's side, in the files' form, and in the last token, whose audio is noise
and is cut off.
"""

from __future__ import annotations

from dataclasses import replace

from chatterbox_vllm.checkpoint.config import ModelConfig, T3Config
from chatterbox_vllm.families.ending import SpeechEnding
from chatterbox_vllm.families.english import ENGLISH
from chatterbox_vllm.families.family import Borrowed, Family
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
    config=ModelConfig(
        family="multilingual", t3=T3Config(text_vocab_size=2454, alignment_heads=((12, 15), (13, 11), (9, 2)))
    ),
    read_tokenizer=lambda directory: MultilingualTokenizer(directory / TOKENIZER),
    normalize=normalize_any_punctuation,
    ending=SpeechEnding(unheard=1),
)
# Recommended by its makers; the one above is what `ChatterboxMultilingualTTS` loads where nobody asks for another. No
# alignment heads of these weights are published: the analyzer that looked at such heads was taken out when they came.
MULTILINGUAL_V3 = replace(
    MULTILINGUAL,
    name="multilingual-v3",
    t3="t3_mtl23ls_v3.safetensors",
    config=ModelConfig(family="multilingual-v3", t3=replace(MULTILINGUAL.config.t3, alignment_heads=())),
)


def _pack(name: str, language: str, revision: str | None, tables: tuple[str, ...] = ()) -> Family:
    """A finetune of the third version for one language, or one region's; it has an S3Gen of its own.

    Args:
        name: as its repository and its T3 file have it.
        tables: that its language needs beside the tokenizer's file.
    """
    shared = (MULTILINGUAL.voice_encoder, MULTILINGUAL.builtin_voice, *tables)
    assert MULTILINGUAL.revision is not None
    return replace(
        MULTILINGUAL,
        name=f"multilingual-{name}",
        languages={language: LANGUAGES[language]},
        repository=f"ResembleAI/Chatterbox-Multilingual-{name}",
        revision=revision,
        t3=f"t3_{name.replace('-', '_')}.safetensors",
        s3gen="s3gen_v3.safetensors",
        tokenizer=(TOKENIZER, *tables),
        config=replace(MULTILINGUAL_V3.config, family=f"multilingual-{name}"),
        borrowed=Borrowed(MULTILINGUAL.repository, MULTILINGUAL.revision, shared),
    )


# Commits are those that public code pins; of two none is known.
SINGLE_LANGUAGES = (
    _pack("zh-cmn", "zh", None, (TABLE,)),
    _pack("es-mx-latam", "es", "27e595bf2fe7be0533ca299d9afafcde08b7cca7"),
    _pack("es-es", "es", "7262b364e3222ba9446c9289e7485eadc47ed902"),
    _pack("pt-br", "pt", "b3952f18bc2eaa72b9bd7c17d2c4653bcad4770d"),
    _pack("pt-pt", "pt", None),
    _pack("hi", "hi", "82ca71273cc2a9ab19efdf8315f865c1a5af0ee7"),
)
