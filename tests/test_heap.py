"""Free memory of the heap goes back to the system."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pytest

from chatterbox_vllm.caches.heap import Heap

_BLOCKS, _BYTES = 400, 100_000  # below the size that the C library asks the system for by itself


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_is_free_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    times = iter([0.0, 1.0, 3.0, 3.0, 4.0, 12.0, 14.0, 14.0])  # asked once a call, twice where it looks
    monkeypatch.setattr("chatterbox_vllm.caches.heap.time.monotonic", lambda: next(times))
    heap = Heap()

    blocks = [library.malloc(_BYTES) for _ in range(_BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, _BYTES)
    for block in blocks[:-1]:  # the last one holds the heap's end
        library.free(block)
    held = resident_bytes()
    heap.give_back(done=True)  # after 1 s: too soon
    assert resident_bytes() > held - _BYTES * _BLOCKS // 2
    heap.give_back(done=True)  # after 3 s
    assert resident_bytes() < held - _BYTES * _BLOCKS // 2
    heap.give_back(done=False)  # 1 s and 9 s after that: too soon while there is work
    heap.give_back(done=False)
    heap.give_back(done=False)
    assert next(times, None) is None
    library.free(blocks[-1])
