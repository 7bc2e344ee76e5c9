"""The small model: a trained checkpoint that speaks English and travels in this package, packed in 8 bits.

`training/` made it; its files have the published layout, with dimensions of their own.
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from pathlib import Path

from chatterbox_vllm.caches.disk import built_once, cache_directory
from chatterbox_vllm.checkpoint.packed import PARTS, read_packed
from chatterbox_vllm.errors import CheckpointError, OutputError

logger = logging.getLogger(__name__)

PACKED = Path(__file__).with_name("small_weights")


def small_directory() -> Path:
    """The small model's files, unpacked at the first call; a directory appears whole or not at all.

    Raises:
        CheckpointError: the packed files are damaged.
        OutputError: the cache cannot be written.
    """
    try:
        directory = cache_directory() / f"small-{_digest(PACKED)}"
        if not directory.is_dir():
            logger.info("unpacking the small model into %s", directory)
        built_once(directory, partial(read_packed, PACKED))
    except OSError as error:
        raise OutputError(
            f"the small model cannot be unpacked ({error}); make room there, or set CHATTERBOX_VLLM_CACHE to a "
            "writable directory"
        ) from error
    return directory


def _digest(packed: Path) -> str:
    """Of the parts' contents, so that other weights get another directory.

    Raises:
        CheckpointError: there are no parts, or one cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    try:
        parts = sorted(packed.glob(PARTS))
        for part in parts:
            digest.update(part.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: cannot be read ({error.strerror}); install this package anew"
        ) from error
    if not parts:
        raise CheckpointError(f"{packed}: the packed small model is missing; install this package anew")
    return digest.hexdigest()
