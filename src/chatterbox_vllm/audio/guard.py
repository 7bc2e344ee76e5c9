"""Files as FFmpeg reads them, without what would take any memory before a sample is decoded."""

from __future__ import annotations

import re
from typing import BinaryIO

# A QuickTime header that is compressed: FFmpeg unpacks it at once, into as many bytes as it claims. Programs have not
# written such headers for twenty years.
_COMPRESSED_HEADER = re.compile(rb"cmov.{4}dcomzlib.{4}cmvd", re.DOTALL)
_HEADER_BYTES = 24
# The head of an ID3 tag, version 2 to 4. FFmpeg unpacks what is compressed in it, and no clip needs its tags.
_TAG = re.compile(rb"ID3[\x02-\x04][\x00-\x0f]")
_TAG_BYTES = 5
_TAG_HEAD_BYTES = 10
_FOOTER = 0x10  # a flag


class GuardedFile:
    """Reads a binary file that can seek, from after its ID3 tags; tags inside it are made unrecognisable.

    Raises:
        OSError: from `read`, where a compressed header begins.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._start = _after_tags(file)
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if _COMPRESSED_HEADER.search(self._tail + data):
            raise OSError("its header is compressed, which could take any memory")
        # A tag may begin in the last bytes: they are left to the next read.
        begun = data.rfind(b"I", len(data) - _TAG_BYTES + 1) if len(data) >= _TAG_BYTES else -1
        if begun > 0 and len(data) == size:
            self._file.seek(begun - len(data), 1)
            data = data[:begun]
        self._tail = data[1 - _HEADER_BYTES :]
        return _TAG.sub(lambda tag: b"xxx" + tag[0][3:], data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._tail = b""
        return self._file.seek(offset + self._start if whence == 0 else offset, whence) - self._start

    def tell(self) -> int:
        return self._file.tell() - self._start


def _after_tags(file: BinaryIO) -> int:
    """Where the ID3 tags at the beginning end; the file stands there."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(_TAG_HEAD_BYTES)
        if len(head) < _TAG_HEAD_BYTES or head[:3] != b"ID3" or max(head[6:]) > 127:
            file.seek(start)
            return start
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += _TAG_HEAD_BYTES + size + (_TAG_HEAD_BYTES if head[5] & _FOOTER else 0)
