"""Which model a directory holds, in a few words that change when the model does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from chatterbox_vllm.checkpoint.config import CONFIG_FILE
from chatterbox_vllm.errors import CheckpointError
from chatterbox_vllm.families.registry import config_of, family_of

# A file is read at this many places, evenly spread, a block at each: 1 MiB of one that may have 3 GB. Training moves
# every weight, so that two models of one layout differ in nearly every block.
_PLACES, _BLOCK = 256, 4096


def model_identity(directory: Path) -> dict[str, Any]:
    """The family, where the weights come from, and a fingerprint of all the model's files.

    Returns:
        "family"; "weights": "synthetic" or "trained" where the configuration says so, else "unknown", as published
        files do not say; "fingerprint": 32 hexadecimal digits over names, sizes, headers and samples of the contents,
        the same for the same files anywhere.

    Raises:
        ConfigError: the configuration cannot be read, or names an unknown family.
        CheckpointError: a file cannot be read.
    """
    config = config_of(directory)
    family = family_of(config.family, directory)
    digest = hashlib.blake2b(digest_size=16)
    for name in (CONFIG_FILE, *sorted(family.files)):
        path = directory / name
        try:
            if path.exists():
                digest.update(f"{name} {path.stat().st_size}\n".encode())
                _sample(path, digest)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    weights = {None: "unknown", True: "synthetic", False: "trained"}[config.synthetic]
    return {"family": family.name, "weights": weights, "fingerprint": digest.hexdigest()}


def _sample(path: Path, digest: hashlib.blake2b) -> None:
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for place in range(min(_PLACES, -(-size // _BLOCK))):
            file.seek(place * size // _PLACES if size > _PLACES * _BLOCK else place * _BLOCK)
            digest.update(file.read(_BLOCK))
