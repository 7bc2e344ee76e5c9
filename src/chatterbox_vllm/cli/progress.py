"""A bar of what is done, on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """Within, call with the name of what is being worked on, how much of it is done, and how much it is in all."""
    from tqdm import tqdm

    with tqdm(unit=unit, disable=None) as bar:

        def progress(part: str, done: int, total: int) -> None:
            if done <= 1:
                bar.reset(total)
                bar.set_description(part, refresh=False)
            bar.update(done - bar.n)

        yield progress
