"""Turbo's babbling model: as babble.py, with GPT-2 for T3, a flow of two steps and a tokenizer of bytes and tags."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from tokenizers import pre_tokenizers

from chatterbox_vllm.checkpoint.config import T3Config
from chatterbox_vllm.families.babble import BABBLE_CONFIG, kept_directory, write_babble
from chatterbox_vllm.families.turbo import TURBO
from chatterbox_vllm.quantization.storage import Tensors
from chatterbox_vllm.text.gpt2_tokenizer import ADDED, END_OF_TEXT, MERGES, VOCABULARY

# Part of the cache directory's name: raise it when anything below changes what is built.
_VERSION = 1
# As published, in the order of their ids.
TAGS = tuple(
    f"[{name}]"
    for name in [
        "angry",
        "fear",
        "surprised",
        "whispering",
        "advertisement",
        "dramatic",
        "narration",
        "crying",
        "happy",
        "sarcastic",
        "clear throat",
        "sigh",
        "shush",
        "cough",
        "groan",
        "sniff",
        "gasp",
        "chuckle",
        "laugh",
    ]
)
_BYTES = 256

BABBLE_TURBO_CONFIG = replace(
    BABBLE_CONFIG,
    family=TURBO.name,
    t3=replace(
        TURBO.config.t3,
        hidden_size=256,
        num_layers=2,
        num_heads=4,
        intermediate_size=512,
        text_vocab_size=_BYTES + 1 + len(TAGS),
        positions=4096,
        # Few, so that the text is a share of the prompt that can be told.
        speech_prompt_tokens=15,
    ),
    s3gen=replace(BABBLE_CONFIG.s3gen, flow=replace(BABBLE_CONFIG.s3gen.flow, meanflow=True)),
    enrolment=TURBO.config.enrolment,
)


def babble_turbo_directory() -> Path:
    """The babbling checkpoint, built at the first call; a directory appears whole or not at all.

    Raises:
        OutputError: the cache cannot be written.
    """
    return kept_directory(f"babble-turbo-v{_VERSION}", _build)


def _build(directory: Path) -> None:
    write_byte_tokenizer(directory)
    write_babble(directory, TURBO, BABBLE_TURBO_CONFIG, _time_the_speech)


def write_byte_tokenizer(directory: Path, size: int = BABBLE_TURBO_CONFIG.t3.text_vocab_size) -> None:
    """GPT-2's three files for a tokenizer of single bytes, the mark of a text's end and the published tags.

    Args:
        size: of the vocabulary; what is left between bytes and tags stands for nothing.
    """
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces += [f"unused{number}" for number in range(size - len(pieces) - 1 - len(TAGS))]
    pieces.append(END_OF_TEXT)
    added = {tag: len(pieces) + number for number, tag in enumerate(TAGS)}
    for name, table in ((VOCABULARY, {piece: number for number, piece in enumerate(pieces)}), (ADDED, added)):
        (directory / name).write_text(json.dumps(table), encoding="utf-8")
    (directory / MERGES).write_text("#version: 0.2\n", encoding="utf-8")


# Residual channels that no random weight writes to.
_CONSTANT, _TEXT, _START, _NOTHING, _SHARE = range(5)
_MARK = 100.0  # makes a norm's output of a marked row the same whatever else is in it
# Speech ends as the sequence is that many times as long as its text, and that many rows beside: of the voice, and a
# second of speech for the shortest text.
_ROWS_A_TEXT_TOKEN, _ROWS_MORE = 3.2, 42


def _time_the_speech(tensors: Tensors, config: T3Config) -> None:
    """Make T3 stop after a time that goes with the text's length, and speak nothing but codebook ids.

    The first head of the first layer attends to all rows alike and sees which of them are text, and which is the
    start of speech. Their shares of the sequence fall as speech grows, and end-of-speech becomes likely.
    """
    own = slice(0, 5)
    for key, tensor in tensors.items():
        if key in ("text_emb.weight", "speech_emb.weight", "tfmr.wpe.weight", "cond_enc.spkr_enc.weight"):
            (tensor.t() if key.startswith("cond_enc.") else tensor)[:, own] = 0
        elif key.endswith("c_proj.weight"):
            tensor[:, own] = 0

    tensors["text_emb.weight"][:, _TEXT] = _MARK
    tensors["speech_emb.weight"][config.start_speech_token, _START] = _MARK
    tensors["speech_emb.weight"][:, _CONSTANT] = 1.0

    # A norm makes the square root of the width of the only large channel.
    seen = 1 / math.sqrt(config.hidden_size)
    queries, value = slice(0, config.head_dim), 2 * config.num_heads * config.head_dim
    attention = tensors["tfmr.h.0.attn.c_attn.weight"]  # [in, out]
    attention[:, queries] = 0
    attention[:, value] = 0
    # The norm takes the mean away, of the channel that holds nothing, too.
    attention[_TEXT, value], attention[_START, value] = _ROWS_A_TEXT_TOKEN * seen, _ROWS_MORE * seen
    attention[_NOTHING, value] = -(_ROWS_A_TEXT_TOKEN + _ROWS_MORE) * seen
    out = tensors["tfmr.h.0.attn.c_proj.weight"]
    out[0] = 0
    out[0, _SHARE] = 1.0

    head = tensors["speech_head.weight"]
    head[:, own] = 0
    head[config.start_speech_token :, _CONSTANT] = -100.0
    head[config.start_speech_token :, _NOTHING] = 100.0
    end = head[config.stop_speech_token]
    end.zero_()
    end[_CONSTANT], end[_SHARE] = 150.0, -150.0
