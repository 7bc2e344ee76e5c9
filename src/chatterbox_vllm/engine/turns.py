"""Whose turn it is: requests of one priority take turns, a segment each. Lower priority numbers go first."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """A queue for each priority, served round robin.

    Whoever is new stands behind those who wait for their next turn already, so that a request waits for one segment of
    each of them at most, however long their texts are.
    """

    def __init__(self) -> None:
        self._queues: dict[int, deque[T]] = {}

    def add(self, entry: T, priority: int) -> None:
        """Put an entry at the end of its queue, as a newcomer or for its next turn."""
        self._queues.setdefault(priority, deque()).append(entry)

    def add_first(self, entry: T, priority: int) -> None:
        """Put an entry back at the head of its queue, since it could not use its turn."""
        self._queues.setdefault(priority, deque()).appendleft(entry)

    def take(self) -> T | None:
        """Remove and return the entry whose turn it is; None where nobody waits."""
        if not self._queues:
            return None
        priority = min(self._queues)
        queue = self._queues[priority]
        entry = queue.popleft()
        if not queue:
            del self._queues[priority]
        return entry

    def drop(self, entry: T, priority: int) -> None:
        """Take an entry out, wherever it stands; nothing happens if it does not wait."""
        queue = self._queues.get(priority)
        if queue is not None and entry in queue:
            queue.remove(entry)
            if not queue:
                del self._queues[priority]

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))
