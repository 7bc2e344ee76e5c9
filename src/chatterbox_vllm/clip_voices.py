"""Voices of audio files, each enrolled once for as long as its file does not change."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields
from pathlib import Path

from chatterbox_vllm.errors import AudioError
from chatterbox_vllm.voices import MAX_REFERENCE_SECONDS, Voice, VoiceEnroller

Key = tuple[str, int, int]  # a file's path, size and time of its last change


class ClipVoices:
    """Enrols clips; keeps the voices used last, up to `most_bytes` (one of 10 s takes 0.17 MB) and one at least."""

    def __init__(self, enroller: VoiceEnroller, most_bytes: int = 32 << 20):
        self.enroller = enroller
        self.most_bytes = most_bytes
        self._kept: OrderedDict[Key, Voice] = OrderedDict()

    def voice(self, path: Path) -> Voice:
        """The voice of the file.

        Raises:
            AudioError: it cannot be read, decoded or used.
        """
        key = _key(path)
        if key not in self._kept:
            # Imported here: it brings all of FFmpeg, which built-in voices do not need.
            from chatterbox_vllm.audio.decode import decode_audio

            wave, rate = decode_audio(path, max_seconds=MAX_REFERENCE_SECONDS)
            self._kept[key] = self.enroller.enrol(wave, rate)
            while len(self._kept) > 1 and self.bytes > self.most_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Of all voices kept."""
        return sum(getattr(voice, field.name).nbytes for voice in self._kept.values() for field in fields(voice))


def _key(path: Path) -> Key:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror}); give an audio file") from error
    return str(path.resolve()), status.st_size, status.st_mtime_ns
