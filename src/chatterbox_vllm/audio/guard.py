"""Files as FFmpeg reads them, watched for what would take any memory before a sample is decoded."""

from __future__ import annotations

import re
from typing import BinaryIO

# A QuickTime header that is compressed: FFmpeg unpacks it at once, into as many bytes as it claims. Programs have not
# written such headers for twenty years.
_COMPRESSED_HEADER = re.compile(rb"cmov.{4}dcomzlib.{4}cmvd", re.DOTALL)
_TAIL = 23  # one byte less than the pattern


class GuardedFile:
    """Reads a binary file that can seek.

    Raises:
        OSError: from `read`, where a compressed header begins.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if _COMPRESSED_HEADER.search(self._tail + data):
            raise OSError("its header is compressed, which could take any memory")
        self._tail = data[-_TAIL:]
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._tail = b""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
