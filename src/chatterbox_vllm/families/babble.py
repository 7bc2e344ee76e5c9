"""The babbling model: a tiny checkpoint of synthetic weights, for tests of everything but what is said.

Its files have the published layout and go through the same loading code. The weights are random but for a few channels
of T3, set by hand so that speech lasts about as long as reading the text would, and only codebook ids are spoken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from chatterbox_vllm.audio.features import RATE_16K, mel_filterbank
from chatterbox_vllm.caches.disk import built_once, cache_directory
from chatterbox_vllm.checkpoint.config import (
    CONFIG_FILE,
    FlowConfig,
    HiFTConfig,
    ModelConfig,
    S3GenConfig,
    SpeechTokenizerConfig,
    T3Config,
    XVectorConfig,
)
from chatterbox_vllm.checkpoint.files import Weights
from chatterbox_vllm.errors import OutputError
from chatterbox_vllm.families.family import Family
from chatterbox_vllm.families.layout import checkpoint_shapes
from chatterbox_vllm.families.multilingual import MULTILINGUAL
from chatterbox_vllm.families.registry import family_of
from chatterbox_vllm.quantization.config import COMPONENTS
from chatterbox_vllm.quantization.storage import Tensors
from chatterbox_vllm.text.languages.chinese import TABLE
from chatterbox_vllm.voices.enrolment import VoiceEnroller

logger = logging.getLogger(__name__)

# Part of the cache directory's name: raise it when anything below changes what is built.
_VERSION = 2

BABBLE_CONFIG = ModelConfig(
    synthetic=True,
    t3=T3Config(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=512),
    s3gen=S3GenConfig(
        tokenizer=SpeechTokenizerConfig(hidden_size=128, num_heads=2, num_layers=2),
        xvector=XVectorConfig(block_layers=(2, 2, 2)),
        flow=FlowConfig(
            hidden_size=128,
            encoder_heads=2,
            encoder_ff_size=256,
            encoder_blocks=2,
            upsampled_blocks=1,
            estimator_channels=64,
            estimator_heads=2,
            estimator_head_dim=32,
            estimator_transformer_blocks=1,
            estimator_mid_stages=2,
        ),
        hift=HiFTConfig(base_channels=128, f0_channels=64),
    ),
)

MULTILINGUAL_BABBLE_CONFIG = replace(
    BABBLE_CONFIG,
    family=MULTILINGUAL.name,
    t3=replace(BABBLE_CONFIG.t3, text_vocab_size=MULTILINGUAL.config.t3.text_vocab_size),
)


def babble_directory() -> Path:
    """The babbling checkpoint, built at the first call; a directory appears whole or not at all.

    Raises:
        OutputError: the cache cannot be written.
    """
    return kept_directory(f"babble-v{_VERSION}", build_babble)


def kept_directory(name: str, build: Callable[[Path], None]) -> Path:
    """A checkpoint of the cache, built at the first call.

    Raises:
        OutputError: the cache cannot be written.
    """
    try:
        directory = cache_directory() / name
        if not directory.is_dir():
            logger.info("building the babbling model in %s", directory)
        built_once(directory, build)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"the babbling model cannot be built ({error}); make room there, or set CHATTERBOX_VLLM_CACHE to a "
            "writable directory"
        ) from error
    return directory


def build_babble(directory: Path, config: ModelConfig = BABBLE_CONFIG) -> None:
    """Write a complete synthetic checkpoint of the family and the dimensions of `config` into an existing directory."""
    family = family_of(config.family)
    write_tokenizer(directory, family, config)
    write_babble(directory, family, config, _time_the_speech)


def write_tokenizer(directory: Path, family: Family, config: ModelConfig) -> None:
    """The tokenizer's files: of single characters, and the table of Chinese ones where the family has one."""
    _tokenizer(config.t3, family).save(str(directory / family.tokenizer[0]))
    if TABLE in family.tokenizer:
        (directory / TABLE).write_text(json.dumps(_cangjie()), encoding="utf-8")


def write_babble(
    directory: Path, family: Family, config: ModelConfig, time_the_speech: Callable[[Tensors, T3Config], None]
) -> None:
    """Everything of a synthetic checkpoint but the tokenizer.

    Args:
        time_the_speech: changes T3's random tensors so that it speaks for a while and stops.
    """
    files = {part: directory / getattr(family, part) for part in COMPONENTS}
    shapes = checkpoint_shapes(config)
    for part, file in files.items():
        tensors = {key: _random_tensor(key, shape) for key, shape in shapes[part].items()}
        if part == "t3":
            time_the_speech(tensors, config.t3)
        if file.suffix == ".pt":
            torch.save(tensors, file)
        else:
            save_file(tensors, file)
    (directory / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    enroller = VoiceEnroller(config, Weights(files["s3gen"]), Weights(files["voice_encoder"]))
    enroller.enrol(_vowels(), 24_000).save(directory / family.builtin_voice)


# Gains that keep a random vocoder audible and unclipped: (part of the key, gain over 1/sqrt(fan-in), mean).
_GAINS = (
    ("mel2wav.f0_predictor.classifier.weight", 150.0),
    ("lstm.weight_ih", 4.0),
    ("lstm.weight_hh", 1.6),
    ("self_attn.o_proj", 0.5),
    ("mlp.down_proj", 0.5),
    ("attn.c_proj", 0.5),
    ("mlp.c_proj", 0.5),
    ("speech_head", 3.0),
    ("project_down.weight", 0.45),
)
# Row norms of the weight-normed convolutions.
_MAGNITUDES = (
    ("ups.0.", 2.2),
    ("ups.1.", 1.8),
    ("ups.2.", 1.4),
    ("conv_post.", 0.6),
    ("resblocks.", 0.45),
    ("condnet.", 1.3),
)


def _random_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor of a key, always the same: Gaussian, scaled by its fan-in; norms one, biases zero."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("original0"):
        return torch.full(shape, next((m for part, m in _MAGNITUDES if part in key), 1.0))
    if key == "mel2wav.f0_predictor.classifier.bias":
        return torch.full(shape, 130.0)  # Hz
    if key == "tokenizer._mel_filters":
        return _speech_tokenizer_filters(shape)
    if key.endswith((".bias", "running_mean", "similarity_bias")) or ".bias_" in key:
        return torch.zeros(shape)
    if len(shape) < 2 and not key.endswith("original1"):
        return torch.ones(shape)
    # The model's earlier name: another word would draw other weights.
    seed = int.from_bytes(hashlib.sha256(f"demo/{key}".encode()).digest()[:8], "big")
    values = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32))
    if "emb" in key.rsplit(".", 2)[-2] and len(shape) == 2:
        return values * 0.5
    gain = next((g for part, g in _GAINS if part in key), 1.0)
    return values * (gain / math.sqrt(math.prod(shape[1:])))


def _speech_tokenizer_filters(shape: tuple[int, ...]) -> torch.Tensor:
    mels, bins = shape
    return mel_filterbank(RATE_16K, 2 * (bins - 1), mels, RATE_16K / 2)


# Residual channels of T3 that no random weight writes to.
_GATE, _CONSTANT, _TEXT, _SHARE = range(4)
_MIN_TOKENS = 25
# End of speech is due when text rows are this share of the sequence: about 2 speech tokens for a letter.
_DUE_SHARE = 0.32


def _time_the_speech(tensors: dict[str, torch.Tensor], config: T3Config) -> None:
    """Make T3 stop after a time that goes with the text's length, and speak nothing but codebook ids.

    The first head of the first layer attends to all rows alike and sees which of them are text rows; their share of the
    sequence falls as speech grows, and end-of-speech becomes likely as it falls below `_DUE_SHARE`.
    """
    own = slice(0, 4)
    for key, tensor in tensors.items():
        if key.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[own] = 0
        elif key in ("text_emb.weight", "speech_emb.weight", "text_pos_emb.emb.weight", "speech_pos_emb.emb.weight"):
            tensor[:, own] = 0
        elif key.startswith("cond_enc.") and tensor.dim() and tensor.shape[0] == config.hidden_size:
            tensor[own] = 0
    tensors["cond_enc.perceiver.pre_attention_query"][..., own] = 0

    marker = math.sqrt(config.hidden_size)
    tensors["text_pos_emb.emb.weight"][:, _TEXT] = marker
    tensors["speech_emb.weight"][:, _CONSTANT] = 1.0
    tensors["speech_pos_emb.emb.weight"][:_MIN_TOKENS, _GATE] = 1.0

    first, head = "tfmr.layers.0.self_attn.", slice(0, config.head_dim)
    tensors[f"{first}q_proj.weight"][head] = 0
    tensors[f"{first}v_proj.weight"][0] = 0
    tensors[f"{first}v_proj.weight"][0, _TEXT] = 1 / marker
    tensors[f"{first}o_proj.weight"][:, 0] = 0
    tensors[f"{first}o_proj.weight"][_SHARE, 0] = 1.0

    speech_head = tensors["speech_head.weight"]
    speech_head[:, own] = 0
    speech_head[config.start_speech_token :, _CONSTANT] = -100.0
    end = speech_head[config.stop_speech_token]
    end.zero_()
    end[_SHARE] = -150.0
    end[_CONSTANT] = 12.0 + 150.0 * _DUE_SHARE
    end[_GATE] = -100.0


def _tokenizer(config: T3Config, family: Family) -> Tokenizer:
    """A tokenizer of single characters with the published special ids; with several languages, of their letters too."""
    special = {
        "[STOP]": config.stop_text_token,
        "[UNK]": 1,
        "[SPACE]": 2,
        "[START]": config.start_text_token,
    }
    characters = [chr(c) for c in range(33, 127)] + list("àâäåæçèéêëìíîïñòóôöøùúûüßœ’“”–—…")
    free = iter(sorted(set(range(config.text_vocab_size)) - set(special.values())))
    if len(family.languages) > 1:
        keys = string.ascii_lowercase + string.digits + "."
        tags = [*(f"[{code}]" for code in family.languages), *(f"[cj_{key}]" for key in keys)]
        special |= {tag: next(free) for tag in tags}
        characters += [chr(c) for block in _LETTERS for c in block]
    vocabulary = special | {character: next(free) for character in dict.fromkeys(characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


# Combining accents, Greek, Cyrillic, Hebrew, Arabic, Devanagari, jamo, kana.
_LETTERS = (
    range(0x300, 0x370),
    range(0x370, 0x400),
    range(0x400, 0x460),
    range(0x5B0, 0x5EB),
    range(0x60C, 0x660),
    range(0x900, 0x980),
    range(0x1100, 0x1200),
    range(0x3001, 0x3003),
    range(0x3041, 0x3100),
)


def _cangjie() -> list[str]:
    """A table in the published form: a code of four letters for every character of the largest block of Han."""
    letters = string.ascii_lowercase
    codes = ("".join(letters[c // 26**k % 26] for k in range(4)) for c in range(0x4E00, 0xA000))
    return [f"{chr(c)}\t{code}" for c, code in zip(range(0x4E00, 0xA000), codes, strict=True)]


def _vowels(seconds: float = 6.0, rate: int = 24_000) -> np.ndarray:
    """The made-up voice's reference clip: a gliding harmonic tone through moving formants, float32 [samples]."""
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * t) + 8 * np.sin(2 * np.pi * 5 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = np.zeros_like(t)
    for harmonic in range(1, 31):
        frequency = harmonic * pitch
        envelope = sum(
            gain * np.exp(-(((frequency - centre) / width) ** 2))
            for centre, width, gain in (
                (500 + 250 * np.sin(2 * np.pi * 1.3 * t), 180, 1.0),
                (1500 + 600 * np.sin(2 * np.pi * 0.9 * t + 1), 250, 0.5),
                (2600, 400, 0.2),
            )
        )
        wave += envelope * np.sin(harmonic * phase)
    wave *= 0.6 + 0.4 * np.sin(2 * np.pi * 3 * t) ** 2
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)
