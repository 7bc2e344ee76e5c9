"""Flash's babbling model: as babble.py, with a T3 that fills in blocks and a flow of two steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from chatterbox_vllm.checkpoint.config import BlockDecoding, T3Config
from chatterbox_vllm.families.babble import BABBLE_CONFIG, kept_directory, write_babble, write_tokenizer
from chatterbox_vllm.families.flash import FLASH
from chatterbox_vllm.quantization.storage import Tensors

# Part of the cache directory's name: raise it when anything below changes what is built.
_VERSION = 1

BABBLE_FLASH_CONFIG = replace(
    BABBLE_CONFIG,
    family=FLASH.name,
    t3=replace(BABBLE_CONFIG.t3, blocks=BlockDecoding()),
    s3gen=replace(BABBLE_CONFIG.s3gen, flow=replace(BABBLE_CONFIG.s3gen.flow, meanflow=True)),
)


def babble_flash_directory() -> Path:
    """The babbling checkpoint, built at the first call; a directory appears whole or not at all.

    It has a voice, which the published files lack.

    Raises:
        OutputError: the cache cannot be written.
    """
    return kept_directory(f"babble-flash-v{_VERSION}", _build)


def _build(directory: Path) -> None:
    write_tokenizer(directory, FLASH, BABBLE_FLASH_CONFIG)
    write_babble(directory, FLASH, BABBLE_FLASH_CONFIG, _time_the_speech)


# Residual channels that no random weight writes to.
_CONSTANT, _TEXT, _START, _SHARE = range(4)
_MARK = 100.0  # makes a norm's output of a marked row the same whatever else is in it
# Speech ends as the sequence is so many times as long as its text, and so many rows beside: of the voice, and a second
# of speech for the shortest text. Guidance counts the text twice, as the null stream has none.
_ROWS_A_TEXT_TOKEN, _ROWS_MORE = 1.6, 62


def _time_the_speech(tensors: Tensors, config: T3Config) -> None:
    """Make T3 stop after a time that goes with the text's length, and speak nothing but codebook ids.

    The first head of the first layer attends to all rows alike and sees which of them are text, and which is the
    start of speech. Their shares of the sequence fall as speech grows, and end-of-speech becomes likely.
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
    tensors["text_emb.weight"][:, _TEXT] = _MARK
    tensors["speech_emb.weight"][config.start_speech_token, _START] = _MARK
    tensors["speech_emb.weight"][:, _CONSTANT] = 1.0

    # A norm makes the square root of the width of the only large channel.
    seen = 1 / math.sqrt(config.hidden_size)
    first = "tfmr.layers.0.self_attn."
    tensors[f"{first}q_proj.weight"][: config.head_dim] = 0
    value = tensors[f"{first}v_proj.weight"]
    value[0] = 0
    value[0, _TEXT], value[0, _START] = _ROWS_A_TEXT_TOKEN * seen, _ROWS_MORE * seen
    out = tensors[f"{first}o_proj.weight"]
    out[:, 0] = 0
    out[_SHARE, 0] = 1.0

    head = tensors["speech_head.weight"]
    head[:, own] = 0
    head[config.start_speech_token :, _CONSTANT] = -100.0
    end = head[config.stop_speech_token]
    end.zero_()
    end[_CONSTANT], end[_SHARE] = 150.0, -150.0
