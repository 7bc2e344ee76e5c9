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

from chatterbox_vllm.checkpoint.config import CONFIG_FILE
from chatterbox_vllm.families.babble_turbo import write_byte_tokenizer
from chatterbox_vllm.families.flash import FLASH
from chatterbox_vllm.t3.backbones import backbone_of
from chatterbox_vllm.text.gpt2_tokenizer import FILES

from . import weights_recipe as recipe
from .tokenizer import MULTILINGUAL_SIZE, write_tokenizer

HERE = Path(__file__).parent

# file -> salt of the recipe's component, keys that the published file lacks
Files = dict[str, tuple[str, tuple[str, ...]]]
ENGLISH: Files = {
    "ve.safetensors": ("ve", ()),
    "t3_cfg.safetensors": ("t3_en", ()),
    "s3gen.safetensors": ("s3gen", ("tokenizer.window",)),
}
TURBO: dict[str, Files] = {
    variant: {
        "ve.safetensors": ("ve", ()),
        f"t3_{variant}_v1.safetensors": (f"t3_{variant}", ()),
        "s3gen_meanflow.safetensors": ("s3gen_mf", ()),
    }
    for variant in ("turbo", "nano")
}


# What the mean flow's file holds beside the tensors of the other's.
MEANFLOW = {"flow.decoder.estimator.time_embed_mixer.weight": ((1024, 2048), "float32")}


def layout(file: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Key to (shape, dtype name) of one published file."""
    if file == "s3gen_meanflow.safetensors":
        return layout("s3gen.safetensors") | MEANFLOW
    tensors = json.loads((HERE / "layouts" / f"{file}.json").read_text())["tensors"]
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in tensors.items()}


def write_english(directory: Path, tokenizer: Path | None) -> Path:
    """Build the checkpoint in `directory` (made if absent; complete files are kept) and return it.

    Args:
        tokenizer: the published file; None for one of our own making.
    """
    write_weights(directory, ENGLISH)
    if tokenizer is None:
        write_tokenizer(directory / "tokenizer.json")
    else:
        shutil.copyfile(tokenizer, directory / "tokenizer.json")
    torch.save(builtin_voice(), directory / "conds.pt")
    return directory


def write_turbo(directory: Path, variant: str, tokenizer: Path | None, shared: Path) -> Path:
    """`write_english` for Turbo or Nano.

    Args:
        tokenizer: the directory of its published files; None for one of our own making.
        shared: where the files lie that the two have in common, if they do.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for file in TURBO[variant]:
        if (shared / file).exists() and not (directory / file).exists():
            (directory / file).symlink_to((shared / file).absolute())
    write_weights(directory, TURBO[variant])
    if tokenizer is None:
        write_byte_tokenizer(directory, size=50_276)
    else:
        for name in FILES:
            shutil.copyfile(tokenizer / name, directory / name)
    torch.save(builtin_voice(prompt_tokens=375), directory / "conds.pt")
    return directory


def write_weights(directory: Path, files: Files) -> None:
    """Those of `files` that are not there yet, into `directory`, which is made if absent."""
    directory.mkdir(parents=True, exist_ok=True)
    buffers = np.load(HERE / "computed_buffers.npz")
    for file, (component, absent) in files.items():
        path = directory / file
        if path.exists():
            continue
        shapes = {key: value for key, value in layout(file).items() if key not in absent}
        partial = path.with_suffix(".partial")
        save_file(state_dict(shapes, component, buffers), partial)
        partial.rename(path)


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


def write_flash(directory: Path, turbo: Path, tokenizer: Path | None) -> Path:
    """`write_english` for Flash; the files that it has in common with Turbo are Turbo's.

    Args:
        turbo: what `write_turbo` has built.
        tokenizer: the published file of the English model; None for one of our own making.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for file in ("ve.safetensors", "s3gen_meanflow.safetensors"):
        own = directory / (FLASH.s3gen if file.startswith("s3gen") else file)
        own.unlink(missing_ok=True)
        own.symlink_to((turbo / file).absolute())
    path = directory / FLASH.t3
    if not path.exists():
        published = backbone_of(FLASH.config.t3).published_shapes(FLASH.config.t3)
        partial = path.with_suffix(".partial")
        save_file(state_dict({key: (shape, "float32") for key, shape in published.items()}, "t3_flash", None), partial)
        partial.rename(path)
    if tokenizer is None:
        write_tokenizer(directory / "tokenizer.json")
    else:
        shutil.copyfile(tokenizer, directory / "tokenizer.json")
    (directory / CONFIG_FILE).write_text(FLASH.config.to_json())
    torch.save(builtin_voice(), directory / "conds.pt")
    return directory


def state_dict(shapes: dict[str, tuple[tuple[int, ...], str]], component: str, buffers: Any) -> dict[str, torch.Tensor]:
    """The recipe's tensors, made on all cores: numpy draws and adds outside Python's lock."""

    def make(key: str) -> dict[str, torch.Tensor]:
        return recipe.state_dict({key: shapes[key]}, component, buffers)

    largest_first = sorted(shapes, key=lambda key: -math.prod(shapes[key][0]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = {key: tensor for part in pool.map(make, largest_first) for key, tensor in part.items()}
    return {key: made[key] for key in shapes}


def builtin_voice(prompt_tokens: int = 150) -> dict[str, dict[str, torch.Tensor | None]]:
    """The synthetic `conds.pt` of the goldens, in the published structure."""
    prompt = recipe.randint(f"conds/cond_prompt_{prompt_tokens}", prompt_tokens, 6561)
    speaker = np.abs(recipe.noise("conds/speaker_emb", 256))
    speaker /= np.linalg.norm(speaker)
    frames = 100
    mel = (-5.0 + 2.0 * recipe.noise("conds/prompt_feat", 2 * frames * 80)).reshape(1, 2 * frames, 80)
    return {
        "t3": {
            "speaker_emb": torch.from_numpy(speaker.astype(np.float32))[None],
            "clap_emb": None,
            "cond_prompt_speech_tokens": torch.from_numpy(prompt)[None],
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
