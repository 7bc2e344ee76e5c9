"""Voices of files, clips and saved voices alike, each read once for as long as its file does not change."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from chatterbox_vllm.caches.memory import MemoryCache
from chatterbox_vllm.checkpoint.config import ModelConfig
from chatterbox_vllm.errors import AudioError, ConfigError
from chatterbox_vllm.voices.preview import preview_of
from chatterbox_vllm.voices.reference import MAX_REFERENCE_SECONDS, check_reference
from chatterbox_vllm.voices.saved import is_saved_voice
from chatterbox_vllm.voices.voice import Voice

Key = tuple[str, int, int, int, bool | None]  # a file's path, inode, size and time of its last change; its loudness
_MOST_BYTES = 32 << 20  # one of 10 s takes 0.17 MB


class Sized(Protocol):
    """A voice, or what of one is needed."""

    @property
    def nbytes(self) -> int: ...


V = TypeVar("V", bound=Sized)
V_co = TypeVar("V_co", covariant=True)


class Enroller(Protocol[V_co]):
    """`VoiceEnroller` for whole voices, `Hearing` for what a conversion needs of one."""

    def enrol(self, wave: np.ndarray, rate: int, norm_loudness: bool | None = None) -> V_co: ...
    def read(self, path: Path) -> V_co: ...
    def release(self) -> None: ...


class FileVoices(Generic[V]):
    """Enrols clips and loads saved voices; `kept` are the voices used last. Threads may share it."""

    def __init__(self, enroller: Enroller[V]):
        self.enroller = enroller
        self.kept: MemoryCache[Key, V] = MemoryCache(lambda voice: voice.nbytes, _MOST_BYTES)

    def voice(self, path: Path, norm_loudness: bool | None = None) -> V:
        """The voice of the file. Its content tells whether it is a clip or a saved voice, not its name.

        Requests for one file at the same time wait for one enrolment.

        Args:
            norm_loudness: of a clip, see `VoiceEnroller.enrol`.

        Raises:
            AudioError: it cannot be read, or decoded or used as a clip.
            ConfigError: `norm_loudness` is given, and it is a saved voice, or the model does not do it.
            CheckpointError: it is a saved voice that is damaged or made for another model.
        """
        return self.kept.get((*_key(path), norm_loudness), lambda: self._read(path, norm_loudness))

    def voice_of_clip(self, clip: bytes, norm_loudness: bool | None = None) -> V:
        """The voice of a clip that is in memory, a file of any audio format.

        Args:
            norm_loudness: see `VoiceEnroller.enrol`.

        Raises:
            AudioError: it cannot be decoded or used.
            ConfigError: `norm_loudness` is given, and the model does not do it.
        """
        key = (hashlib.sha256(clip).hexdigest(), 0, len(clip), 0, norm_loudness)  # no path looks like it
        return self.kept.get(key, lambda: self.enroller.enrol(*_decoded(clip), norm_loudness))

    def _read(self, path: Path, norm_loudness: bool | None) -> V:
        if _is_saved(path):
            check_saved_as_it_is(path, norm_loudness)
            return self.enroller.read(path)
        return self.enroller.enrol(*_decoded(path), norm_loudness)


def check_voice_file(path: Path, config: ModelConfig | None = None, norm_loudness: bool | None = None) -> None:
    """Refuse a file that cannot give a voice, without a model.

    Args:
        config: the model that a saved voice must fit; the published sizes by default.
        norm_loudness: what is asked of it.

    Raises:
        AudioError, ConfigError, CheckpointError: as `FileVoices.voice`.
    """
    _key(path)
    if _is_saved(path):
        check_saved_as_it_is(path, norm_loudness)
        Voice.load(path, config)
    else:
        check_reference(*_decoded(path), (config or ModelConfig()).enrolment.least_seconds)


def check_saved_as_it_is(path: Path, norm_loudness: bool | None) -> None:
    """Refuse a wish for a clip's loudness where there is a saved voice.

    Raises:
        ConfigError
    """
    if norm_loudness is not None:
        raise ConfigError(
            f"{path} is a saved voice, which was enrolled with a loudness already: leave norm_loudness={norm_loudness} "
            "out, or give the clip itself"
        )


def preview_of_file(path: Path) -> bytes | None:
    """The preview of a clip that was enrolled; None for a saved voice, which holds none.

    Raises:
        AudioError: the clip cannot be read or decoded.
    """
    return None if _is_saved(path) else preview_of(*_decoded(path))


def _decoded(clip: Path | bytes) -> tuple[np.ndarray, int]:
    # Imported here: it brings all of FFmpeg, which saved voices do not need.
    from chatterbox_vllm.audio.decode import decode_audio

    return decode_audio(clip, max_seconds=MAX_REFERENCE_SECONDS)


def _is_saved(path: Path) -> bool:
    if not path.is_file():  # decoding says what it is instead
        return False
    try:
        return is_saved_voice(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _key(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
        return str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> AudioError:
    reason = getattr(error, "strerror", None) or error
    return AudioError(f"{path}: cannot be read ({reason}); give an audio file or a saved voice")
