"""Writes full-size synthetic checkpoint directories (float32), file by file, in the published layout."""

from __future__ import annotations

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from . import weights_recipe as recipe
from .tokenizer import MULTILINGUAL_SIZE, write_tokenizer

HERE = Path(__file__).parent

# file -> salt of the recipe's component, keys that the published file lacks
ENGLISH = {
    "ve.safetensors": ("ve", ()),
    "t3_cfg.safetensors": ("t3_en", ()),
    "s3gen.safetensors": ("s3gen", ("tokenizer.window",)),
}


def layout(file: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key to (shape, dtype name) of one published file."""
    tensors = json.loads((HERE / "layouts" / f"{file}.json").read_text())["tensors"]
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in tensors.items()}


def write_english(directory: Path, tokenizer: Path | None) -> Path:
    """Build the checkpoint in `directory` (made if absent; complete files are kept) and return it.

    Args:
        tokenizer: the published file; None for one of our own making.
    """
    directory.mkdir(parents=True, exist_ok=True)
    buffers = np.load(HERE / "computed_buffers.npz")
    for file, (component, absent) in ENGLISH.items():
        path = directory / file
        if path.exists():
            continue
        shapes = {key: value for key, value in layout(file).items() if key not in absent}
        partial = path.with_suffix(".partial")
        save_file(state_dict(shapes, component, buffers), partial)
        partial.rename(path)
    if tokenizer is None:
        write_tokenizer(directory / "tokenizer.json")
    else:
        shutil.copyfile(tokenizer, directory / "tokenizer.json")
    torch.save(builtin_voice(), directory / "conds.pt")
    return directory


def write_multilingual(directory: Path, english: Path, tokenizer: Path | None) -> Path:
    """The same for the multilingual model, whose voice encoder and S3Gen have the English model's weights: its files.

    Those are `.safetensors` under the published names, which end in `.pt`.

    Args:
        english: what `write_english` has built.
        tokenizer: the published file; None for one of our own making.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "t3_mtl23ls_v2.safetensors"
    if not path.exists():
        shapes = layout("t3_cfg.safetensors")
        for key in ("text_emb.weight", "text_head.weight"):
            (_, width), dtype = shapes[key]
            shapes[key] = (MULTILINGUAL_SIZE, width), dtype
        partial = path.with_suffix(".partial")
        save_file(state_dict(shapes, "t3_ml", None), partial)
        partial.rename(path)
    for own, same in (("ve.pt", "ve.safetensors"), ("s3gen.pt", "s3gen.safetensors"), ("conds.pt", "conds.pt")):
        (directory / own).unlink(missing_ok=True)
        (directory / own).symlink_to((english / same).absolute())
    vocabulary = directory / "grapheme_mtl_merged_expanded_v1.json"
    if tokenizer is None:
        write_tokenizer(vocabulary, MULTILINGUAL_SIZE, ("[de]", "[zh]"))
    else:
        shutil.copyfile(tokenizer, vocabulary)
    return directory


def state_dict(shapes: dict[str, tuple[tuple[int, ...], str]], component: str, buffers: Any) -> dict[str, torch.Tensor]:
    """The recipe's tensors, made on all cores: numpy draws and adds outside Python's lock."""

    def make(key: str) -> dict[str, torch.Tensor]:
        return recipe.state_dict({key: shapes[key]}, component, buffers)

    largest_first = sorted(shapes, key=lambda key: -math.prod(shapes[key][0]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = {key: tensor for part in pool.map(make, largest_first) for key, tensor in part.items()}
    return {key: made[key] for key in shapes}


def builtin_voice() -> dict[str, dict[str, torch.Tensor | None]]:
    """The synthetic `conds.pt` of the goldens, in the published structure."""
    speaker = np.abs(recipe.noise("conds/speaker_emb", 256))
    speaker /= np.linalg.norm(speaker)
    frames = 100
    mel = (-5.0 + 2.0 * recipe.noise("conds/prompt_feat", 2 * frames * 80)).reshape(1, 2 * frames, 80)
    return {
        "t3": {
            "speaker_emb": torch.from_numpy(speaker.astype(np.float32))[None],
            "clap_emb": None,
            "cond_prompt_speech_tokens": torch.from_numpy(recipe.randint("conds/cond_prompt_150", 150, 6561))[None],
            "cond_prompt_speech_emb": None,
            "emotion_adv": 0.5 * torch.ones(1, 1, 1),
        },
        "gen": {
            "prompt_token": torch.from_numpy(recipe.randint("conds/prompt_token", frames, 6561))[None],
            "prompt_token_len": torch.tensor([frames]),
            "prompt_feat": torch.from_numpy(mel.astype(np.float32)),
            "prompt_feat_len": None,
            "embedding": torch.from_numpy(recipe.noise("conds/embedding", 192))[None],
        },
    }
