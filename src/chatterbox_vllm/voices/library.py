"""Voices of audio files, each enrolled once for as long as its file does not change."""

from __future__ import annotations

from pathlib import Path

from chatterbox_vllm.caches.memory import MemoryCache
from chatterbox_vllm.errors import AudioError
from chatterbox_vllm.voices.enrolment import VoiceEnroller
from chatterbox_vllm.voices.reference import MAX_REFERENCE_SECONDS
from chatterbox_vllm.voices.voice import Voice

Key = tuple[str, int, int]  # a file's path, size and time of its last change
_MOST_BYTES = 32 << 20  # one of 10 s takes 0.17 MB


class ClipVoices:
    """Enrols clips; `kept` are the voices used last."""

    def __init__(self, enroller: VoiceEnroller):
        self.enroller = enroller
        self.kept: MemoryCache[Key, Voice] = MemoryCache(lambda voice: voice.nbytes, _MOST_BYTES)

    def voice(self, path: Path) -> Voice:
        """The voice of the file.

        Raises:
            AudioError: it cannot be read, decoded or used.
        """
        return self.kept.get(_key(path), lambda: self._enrol(path))

    def _enrol(self, path: Path) -> Voice:
        # Imported here: it brings all of FFmpeg, which built-in voices do not need.
        from chatterbox_vllm.audio.decode import decode_audio

        return self.enroller.enrol(*decode_audio(path, max_seconds=MAX_REFERENCE_SECONDS))


def _key(path: Path) -> Key:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}); give an audio file") from error
    return str(path.resolve()), status.st_size, status.st_mtime_ns
