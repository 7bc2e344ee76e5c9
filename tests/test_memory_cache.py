"""The cache of what is dear to make: least recently used goes first, by bytes, and one stays."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatterbox_vllm.caches.memory import MemoryCache


def test_what_was_used_last_stays_within_the_bound() -> None:
    made: list[str] = []
    cache: MemoryCache[str, str] = MemoryCache(len, most_bytes=5)

    def get(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key)

    assert [get(key) for key in ("aa", "bb", "aa", "c")] == ["aa", "bb", "aa", "c"]
    assert made == ["aa", "bb", "c"] and (len(cache), cache.bytes) == (3, 5)
    get("d")  # bb was used least recently
    assert get("aa") == "aa" and made == ["aa", "bb", "c", "d"] and cache.bytes == 4
    get("too long to be kept with others")
    assert len(cache) == 1 and cache.bytes > cache.most_bytes
    get("too long to be kept with others")
    assert made[4:] == ["too long to be kept with others"]


def test_what_cannot_be_made_is_not_kept() -> None:
    cache: MemoryCache[int, str] = MemoryCache(len, most_bytes=5)
    with pytest.raises(ZeroDivisionError):
        cache.get(1, lambda: str(1 / 0))
    assert len(cache) == 0 and cache.get(1, lambda: "x") == "x"


def test_threads_share_what_is_being_made() -> None:
    cache: MemoryCache[int, str] = MemoryCache(len, most_bytes=5)
    made: list[int] = []
    begun, may_end = threading.Event(), threading.Event()

    def make() -> str:
        made.append(1)
        begun.set()
        may_end.wait(60)
        return "x"

    cache.get(2, lambda: "kept")
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(cache.get, 1, make)
        assert begun.wait(60)
        others = [pool.submit(cache.get, 1, make) for _ in range(3)]
        assert cache.get(2, make) == "kept"  # does not wait for the one that is being made
        may_end.set()
        assert [future.result(60) for future in (first, *others)] == ["x"] * 4
    assert made == [1]
