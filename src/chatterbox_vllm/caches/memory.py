"""Values that are dear to make, kept in bounded memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class MemoryCache(Generic[K, V]):
    """The values used last, up to `most_bytes` together (by `size` of each) and one at least.

    Threads may share it: a value that several ask for at once is made once, and one that is kept comes at once
    whatever is being made.
    """

    def __init__(self, size: Callable[[V], int], most_bytes: int):
        self.most_bytes = most_bytes
        self._size = size
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._being_made: dict[K, Future[V]] = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of `key`, made where it is not kept. What `make` raises goes to all who wait for it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            others = self._being_made.get(key)
            own = self._being_made[key] = Future() if others is None else others
        if others is not None:
            return others.result()
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._being_made[key]
            own.set_exception(error)
            raise
        with self._lock:
            del self._being_made[key]
            self._kept[key] = value
            while len(self._kept) > 1 and self.bytes > self.most_bytes:
                self._kept.popitem(last=False)
        own.set_result(value)
        return value

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Of all values kept."""
        return sum(map(self._size, self._kept.values()))
