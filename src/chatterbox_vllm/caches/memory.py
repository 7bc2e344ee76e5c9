"""Values that are dear to make, kept in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class MemoryCache(Generic[K, V]):
    """The values used last, up to `most_bytes` together (by `size` of each) and one at least.

    For several threads; one value is made at a time.
    """

    def __init__(self, size: Callable[[V], int], most_bytes: int):
        self.most_bytes = most_bytes
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made where it is not kept."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                while len(self._kept) > 1 and self.bytes > self.most_bytes:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Of all values kept."""
        return sum(map(self._size, self._kept.values()))
